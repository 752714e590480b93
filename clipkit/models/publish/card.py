"""Model cards: what can be said of a model without what it was trained on and measured by."""

import filecmp
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipkit.models.publish.layout import Layout
from clipkit.models.publish.provenance import Base
from clipkit.models.publish.push import CARD, WEIGHTS
from clipkit.models.publish.usage import HERE, usage
from clipkit.run_files import RunFiles


def card(layout: Layout, parts: Sequence[str] = (), *, trained: bool = False, eval_results: Sequence[Any] = ()) -> str:
    """The text of a README.md, with the header that the Hub reads.

    Args:
        layout: of the model.
        parts: sections between its use and its limits.
        trained: whether it was trained here.
        eval_results: huggingface_hub's, for the header.
    """
    from huggingface_hub import ModelCardData

    licence, licence_name, licence_link = _licence(layout.bases)
    both = len(layout.sides) == 2
    one_sided = {"image": "image-feature-extraction", "text": "feature-extraction"}
    data = ModelCardData(
        library_name=layout.library,
        license=licence,
        license_name=licence_name,
        license_link=licence_link,
        base_model=layout.repositories or None,
        pipeline_tag="zero-shot-image-classification" if both else one_sided[layout.sides[0]],
        tags=["clip", "clipkit", *(["image-text-retrieval"] if both else ["feature-extraction"])],
        model_name=HERE,
        eval_results=list(eval_results) or None,
    )
    return (
        "\n\n".join(
            [
                f"---\n{data.to_yaml()}\n---",
                f"# {HERE}",
                _what(layout, trained),
                "## How to use it",
                usage(layout),
                *parts,
                *(["## Limits", _LIMITS] if trained else []),
                *_of_licence(layout.bases),
            ]
        )
        + "\n"
    )


def kept_card(source: Path, saved: Path) -> str | None:
    """The card of the folder, or of the run, that a model was loaded from, where the model has its weights still."""
    of_run = RunFiles(source).model
    folder = of_run if (of_run / CARD).is_file() else source
    weights = [path.relative_to(saved) for path in saved.rglob("*") if path.suffix in WEIGHTS]
    same = all((folder / own).is_file() and filecmp.cmp(folder / own, saved / own, shallow=False) for own in weights)
    return (folder / CARD).read_text(encoding="utf-8") if same and (folder / CARD).is_file() else None


_LIMITS = (
    "What it was tuned on decides what it knows: on images and captions of another kind it may do worse than the "
    "model it came from. Nothing was done against prejudices in the data. The figures hold for the data that they "
    "name, and their intervals for the images in it."
)


def _what(layout: Layout, trained: bool) -> str:
    kinds = {"image": "images", "text": "texts"}
    if len(layout.sides) == 2:
        what = "A dual encoder: images and captions become unit vectors, and those that belong together lie close"
    else:
        what = f"An encoder: {kinds[layout.sides[0]]} become unit vectors, and similar ones lie close"
    made = " and ".join(f"[{base}](https://huggingface.co/{base})" for base in layout.repositories)
    came = f", made of {made}" if made else ""
    tuned = ", trained with clipkit" if trained else ""
    return f"{what}{came}{tuned}."


def _licence(bases: Sequence[Base]) -> tuple[str | None, str | None, str | None]:
    """For the header, with its name and address: none where a base states none, other where they differ."""
    licences = {(base.license, base.license_name, base.license_link) for base in bases}
    if not bases or any(base.license is None for base in bases):
        return None, None, None
    return licences.pop() if len(licences) == 1 else ("other", None, None)


def _of_licence(bases: Sequence[Base]) -> list[str]:
    """In words, where the header cannot say it."""
    distinct = {(base.license, base.license_name, base.license_link) for base in bases}
    if len(distinct) < 2 and not any(base.license is None for base in bases):
        return []
    lines = [f"- {base.name}: {_words(base)}" for base in bases]
    advice = "Where none was found, ask the owner before you pass the model on."
    unknown = any(base.license is None for base in bases)
    return ["## Licence", "What it was made of has these licences:", "\n".join(lines), *([advice] if unknown else [])]


def _words(base: Base) -> str:
    if base.license is None:
        return "none was found"
    name = base.license_name or base.license
    return f"[{name}]({base.license_link})" if base.license_link and "://" in base.license_link else name
