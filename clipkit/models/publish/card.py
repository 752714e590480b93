"""Model cards (README.md of a model) with description, usage and license."""

import filecmp
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipkit.models.publish.layout import Layout
from clipkit.models.publish.provenance import Base
from clipkit.models.publish.push import CARD, WEIGHTS
from clipkit.models.publish.usage import HERE, usage
from clipkit.run_files import RunFiles


def card(
    layout: Layout,
    parts: Sequence[str] = (),
    *,
    trained: bool = False,
    eval_results: Sequence[Any] = (),
    here: str = HERE,
) -> str:
    """Return the text of a model card, with the YAML header that the Hub reads.

    Args:
        layout: properties of the model.
        parts: further sections, e.g. about training and evaluation, inserted after the usage section.
        trained: True if the model was trained with clipkit.
        eval_results: EvalResult objects of huggingface_hub, for the header.
        here: Hub repository or folder from which the code in the card loads the model.
    """
    from huggingface_hub import ModelCardData

    both = len(layout.sides) == 2
    one_sided = {"image": "image-feature-extraction", "text": "feature-extraction"}
    data = ModelCardData(
        library_name=layout.library,
        **_license(layout.bases),
        base_model=layout.repositories or None,
        pipeline_tag="zero-shot-image-classification" if both else one_sided[layout.sides[0]],
        tags=["clip", "clipkit", *(["image-text-retrieval"] if both else ["feature-extraction"])],
        model_name=here if here == HERE else Path(here).name,
        eval_results=list(eval_results) or None,
    )
    header = f"---\n{data.to_yaml()}\n---"
    limits = ["## Limits", _LIMITS] if trained else []
    title = f"# {here if here == HERE else Path(here).name}"
    shown = [header, title, _summary(layout, trained), "## How to use it", usage(layout, here), *parts, *limits]
    return "\n\n".join([*shown, *_license_section(layout.bases)]) + "\n"


def export_card(layout: Layout, folder: str, notes: Sequence[str]) -> str:
    """Return the model card of an exported folder.

    Args:
        layout: properties of the exported model.
        folder: path of the export, as the user wrote it, for the code in the card.
        notes: sentences about known differences from the original model.
    """
    known = ["## Known differences", "\n".join(f"- {note}" for note in notes)] if notes else []
    return card(layout, [*known, _OF_EXPORT], here=folder)


def kept_card(source: Path, saved: Path) -> str | None:
    """Return the model card of the folder or run `source`, if the model in `saved` has the same weights.

    The result is None if the weights differ, or if `source` has no card or only the card of an export.
    """
    run_model = RunFiles(source).model
    folder = run_model if (run_model / CARD).is_file() else source
    weights = [path.relative_to(saved) for path in saved.rglob("*") if path.suffix in WEIGHTS]
    same = all(
        (folder / file).is_file() and filecmp.cmp(folder / file, saved / file, shallow=False) for file in weights
    )
    text = (folder / CARD).read_text(encoding="utf-8") if same and (folder / CARD).is_file() else None
    return None if text is not None and is_of_export(text) else text


def is_of_export(text: str) -> bool:
    """Return whether `export` wrote a model card; the example code in this card then contains a local path."""
    return _OF_EXPORT in text


_OF_EXPORT = "<!-- clipkit: card of an export -->"


_LIMITS = (
    "The training data determines what the model knows: on other kinds of images and captions, it may be "
    "worse than its base model. Biases in the data were not removed. The metrics apply only to the named "
    "data, and their intervals only to its images."
)


def _summary(layout: Layout, trained: bool) -> str:
    kinds = {"image": "images", "text": "texts"}
    if len(layout.sides) == 2:
        what = "A dual encoder: images and captions become unit vectors, and matching ones are close"
    else:
        what = f"An encoder: {kinds[layout.sides[0]]} become unit vectors, and similar ones are close"
    bases = " and ".join(f"[{base}](https://huggingface.co/{base})" for base in layout.repositories)
    origin = f", built from {bases}" if bases else ""
    tuned = ", trained with clipkit" if trained else ""
    return f"{what}{origin}{tuned}."


def _license(bases: Sequence[Base]) -> dict[str, Any]:
    """Return the license fields of the card header; empty if a license is unknown.

    If the licenses of the base models differ, the license is `other`.
    """
    licenses = {(base.license, base.license_name, base.license_link) for base in bases}
    if not bases or any(base.license is None for base in bases):
        return {}
    values = licenses.pop() if len(licenses) == 1 else ("other",)
    return dict(zip(("license", "license_name", "license_link"), values, strict=False))


def _license_section(bases: Sequence[Base]) -> list[str]:
    """Return a section with the license of each base model; empty if all have the same known license."""
    # The header of the card holds only one license.
    distinct = {(base.license, base.license_name, base.license_link) for base in bases}
    if len(distinct) < 2 and not any(base.license is None for base in bases):
        return []
    lines = [f"- {base.name}: {_words(base)}" for base in bases]
    advice = "If a license is missing, ask the owner before you share the model."
    unknown = any(base.license is None for base in bases)
    return ["## License", "Licenses of the base models:", "\n".join(lines), *([advice] if unknown else [])]


def _words(base: Base) -> str:
    if base.license is None:
        return "not stated"
    name = base.license_name or base.license
    return f"[{name}]({base.license_link})" if base.license_link and "://" in base.license_link else name
