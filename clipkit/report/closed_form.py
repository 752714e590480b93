"""Tables for the report of a run whose projections were initialized by canonical correlation analysis (CCA)."""

from typing import Any

from clipkit.recipe.layers import shortened
from clipkit.report.page import Table
from clipkit.tasks import number, readable

_METRICS = ("image_retrieval_recall@1", "text_retrieval_recall@1", "mean_recall")


def closed_form_tables(results: dict[str, Any]) -> list[Table]:
    """Return tables about projections that CCA computed before training; [] if the run did not use CCA.

    One table compares the layers and ridge values among which the projections were chosen. With validation data,
    another table compares the validation metrics before and after training.
    """
    facts = results["settings"].get("closed_form")
    if not facts:
        return []
    validated = [name for name in _METRICS if name in facts.get("validation", {}) and name in results["metrics"]]
    tables = []
    if validated:
        stages = {
            "closed-form start": [number(name, facts["validation"][name]) for name in validated],
            "after training": [number(name, results["metrics"][name]["value"]) for name in validated],
        }
        rows = [[stage, *cells] for stage, cells in stages.items()]
        note = "Measured on the validation pairs, which were not used to choose the closed-form start."
        tables.append(Table("Closed-form start and training", ["", *map(readable, validated)], rows, note, strong=None))
    columns = ["image layers", "text layers", "ridge", "coordinates", *map(readable, _METRICS)]
    rows = [
        [shortened(row["image_layers"]), shortened(row["text_layers"]), f"{row['ridge']:g}", str(row["width"])]
        + [number(name, row[name]) for name in _METRICS]
        for row in facts["compared"]
    ]
    count = facts["held_out_images"]
    note = f"Canonical correlations of the other training images, measured on {count} held-out training images."
    return [*tables, Table("Choice of the start", columns, rows, note, strong=len(columns) - 1, words=[0, 1])]
