"""Access to a run folder: logs, evaluations, findings, results, report and model."""

from pathlib import Path
from typing import Any

from clipkit.errors import DataError
from clipkit.evaluation import Result
from clipkit.findings import Finding
from clipkit.models import DualEncoder, load
from clipkit.recipe import Recipe
from clipkit.run_files import RunFiles, read_rows, results_of
from clipkit.training.guards.record import read_findings


class Run:
    """A run that is finished or still in progress.

    Each access to an attribute reads the corresponding file again.

    Args:
        folder: the `output` of the run's recipe.

    Raises:
        DataError: the folder is not a run folder.

    Example:
        >>> run = Run("runs/a")                                            # doctest: +SKIP
        >>> run.metrics.plot(x="step", y="loss"); run.result; run.model()  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path) -> None:
        self._files = RunFiles(folder)
        if not self._files.is_run:
            what = "is not a run folder (it has no recipe.yaml)" if Path(folder).is_dir() else "folder not found"
            raise DataError(f"{folder}: {what}; give the output folder of a run")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._files.path

    @property
    def is_finished(self) -> bool:
        """True if the results and the report have been written."""
        return self._files.is_finished

    @property
    def recipe(self) -> Recipe:
        """Complete recipe of the run: its settings, and the defaults of all other keys."""
        return Recipe.from_yaml(self._files.recipe)

    @property
    def metrics(self) -> Any:
        """pandas DataFrame of metrics.jsonl: one row per logged step."""
        return _frame(read_rows(self._files.metrics))

    @property
    def speed(self) -> Any:
        """pandas DataFrame of speed.jsonl: one row per logged step."""
        return _frame(read_rows(self._files.speed))

    @property
    def evaluations(self) -> Any:
        """pandas DataFrame of evaluations.jsonl: one row per evaluation."""
        return _frame(read_rows(self._files.evaluations))

    @property
    def findings(self) -> list[Finding]:
        """Problems that the guards (automatic checks of the run) have found so far."""
        found = read_findings(self.folder)
        return [] if found is None else found[1]

    @property
    def result(self) -> Result | None:
        """Result on the validation data with the best weights; None before the end of the run."""
        results = results_of(self.folder)
        return None if results is None else Result(results)

    @property
    def report(self) -> Path | None:
        """Path of the HTML report; None before the end of the run."""
        return self._files.report if self._files.report.is_file() else None

    def model(self, **options: Any) -> DualEncoder:
        """Load the model with the best weights so far.

        Args:
            options: options of `clipkit.load`.
        """
        return load(self.folder, **options)

    def __repr__(self) -> str:
        rows = read_rows(self._files.metrics)
        state = "finished" if self.is_finished else "not finished"
        lines = [f"run {self.folder}: {state}, {rows[-1]['step'] if rows else 0} steps"]
        if rows and "loss" in rows[-1]:
            lines[0] += f", loss {rows[-1]['loss']:.4f}"
        lines += [finding.line() for finding in self.findings if finding.severity != "note"]
        result = self.result
        return "\n".join([*lines, *([] if result is None else [repr(result)])])

    def _repr_html_(self) -> str:
        """Return HTML for a notebook: the state of the run, its findings and the table of its result."""
        import html

        result = self.result
        table = "" if result is None else result._repr_html_()
        lines = repr(self).splitlines()[: 1 + len([one for one in self.findings if one.severity != "note"])]
        return "".join(f"<p>{html.escape(line)}</p>" for line in lines) + table


def _frame(rows: list[dict[str, Any]]) -> Any:
    import pandas as pd

    return pd.DataFrame(rows)
