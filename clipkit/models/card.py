"""Model cards: what can be said of a model without what it was trained on and measured by."""

from collections.abc import Sequence
from typing import Any

from clipkit.models.layout import Layout
from clipkit.models.push import HERE


def card(layout: Layout, parts: Sequence[str] = (), *, trained: bool = False, eval_results: Sequence[Any] = ()) -> str:
    """The text of a README.md, with the header that the Hub reads.

    Args:
        layout: of the model.
        parts: sections between its use and its limits.
        trained: whether it was trained here.
        eval_results: huggingface_hub's, for the header.
    """
    from huggingface_hub import ModelCardData

    both = len(layout.sides) == 2
    data = ModelCardData(
        library_name={"transformers": "transformers", "open_clip": "open_clip"}.get(layout.library),
        license=_licence(layout),
        base_model=list(layout.bases) or None,
        pipeline_tag="zero-shot-image-classification" if both else None,
        tags=["clip", "clipkit", *(["image-text-retrieval"] if both else ["feature-extraction"])],
        model_name=HERE.rpartition("/")[2],
        eval_results=list(eval_results) or None,
    )
    return (
        "\n\n".join(
            [
                f"---\n{data.to_yaml()}\n---",
                f"# {HERE}",
                _what(layout, trained),
                "## How to use it",
                _usage(layout),
                *parts,
                *(["## Limits", _LIMITS] if trained else []),
                *_of_licence(layout),
            ]
        )
        + "\n"
    )


_LIMITS = (
    "What it was tuned on decides what it knows: on pictures and captions of another kind it may do worse than the "
    "model it came from. Nothing was done against prejudices in the data. The figures hold for the data that they "
    "name, and their intervals for the pictures in it."
)


def _what(layout: Layout, trained: bool) -> str:
    kinds = {"image": "pictures", "text": "texts"}
    if len(layout.sides) == 2:
        what = "A dual encoder: pictures and captions become unit vectors, and those that belong together lie close"
    else:
        what = f"An encoder: {kinds[layout.sides[0]]} become unit vectors, and similar ones lie close"
    made = " and ".join(f"[{base}](https://huggingface.co/{base})" for base in layout.bases)
    came = f", made of {made}" if made else ""
    tuned = ", trained with clipkit" if trained else ""
    return f"{what}{came}{tuned}."


def _usage(layout: Layout) -> str:
    blocks = []
    if layout.library == "transformers":
        lines = [
            "from transformers import AutoImageProcessor, AutoTokenizer, " + str(layout.class_name),
            "",
            f'model = {layout.class_name}.from_pretrained("{HERE}")',
        ]
        if layout.class_name in ("CLIPModel", "SiglipModel", "Siglip2Model", "MetaClip2Model"):
            lines = [
                "from transformers import pipeline",
                "",
                f'classify = pipeline("zero-shot-image-classification", model="{HERE}")',
                'classify("photo.jpg", candidate_labels=["a cat", "a dog"])',
            ]
        blocks.append(("transformers", lines))
    if layout.library == "open_clip":
        lines = [
            "import open_clip",
            "",
            f'model, preprocess = open_clip.create_model_from_pretrained("hf-hub:{HERE}")',
            f'tokenizer = open_clip.get_tokenizer("hf-hub:{HERE}")',
        ]
        blocks.append(("open_clip", lines))
    lines = ["import clipkit", "", f'model = clipkit.load("{HERE}")']
    if layout.sides == ("image", "text"):
        lines.append('model.classify(["photo.jpg"], ["a cat", "a dog"])')
    if "image" in layout.sides:
        lines.append('model.encode_image(["photo.jpg"])')
    if "text" in layout.sides:
        lines.append('model.encode_text(["a cat", "a dog"])')
    blocks.append(("clipkit", lines))
    return "\n\n".join(f"With {name}:\n\n```python\n" + "\n".join(own) + "\n```" for name, own in blocks)


def _licence(layout: Layout) -> str | None:
    found = set(layout.licences)
    return None if not found else next(iter(found)) if len(found) == 1 else "other"


def _of_licence(layout: Layout) -> list[str]:
    if not layout.pretrained:
        return []
    if not layout.licences:
        return [
            "## Licence",
            "The model that it came from states none that was found; ask its owner before you pass it on.",
        ]
    if len(set(layout.licences)) > 1:
        return ["## Licence", f"Its parts have licences of their own: {', '.join(layout.licences)}."]
    return []
