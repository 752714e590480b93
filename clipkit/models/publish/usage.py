"""Usage section of a model card: runnable code for each library that opens the model."""

from clipkit.models.families import family_of_class
from clipkit.models.publish.layout import Layout

HERE = "ORG/NAME"
"""Placeholder for the repository in a card that is not on the Hub yet."""


def usage(layout: Layout) -> str:
    """Return a code block for each library that can load the model."""
    blocks = []
    if layout.library == "transformers":
        family = family_of_class(layout.class_name)
        blocks.append(("transformers", _transformers(layout)))
        if family is not None and family.pipeline:
            blocks.append(("transformers' pipeline", _PIPELINE_CODE))
    elif layout.library == "open_clip":
        blocks.append(("open_clip", _open_clip(layout.sigmoid)))
    blocks.append(("clipkit", _clipkit(layout.sides)))
    if layout.library == "clipkit":
        blocks.append(("the libraries of its towers, without the projections", _towers(layout.sides)))
    return "\n\n".join(f"With {name}:\n\n```python\n{code}\n```" for name, code in blocks)


def _transformers(layout: Layout) -> str:
    family = family_of_class(layout.class_name)
    length = layout.pad_to or (family.longest if family is not None else None)
    padding = f'padding="max_length", max_length={length}, truncation=True' if length else "padding=True"
    probability = "sigmoid()" if layout.sigmoid else "softmax(dim=1)"
    return f"""import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, {layout.class_name}

model = {layout.class_name}.from_pretrained("{HERE}").eval()
image_processor = AutoImageProcessor.from_pretrained("{HERE}")
tokenizer = AutoTokenizer.from_pretrained("{HERE}")

images = image_processor([Image.open("photo.jpg").convert("RGB")], return_tensors="pt")
texts = tokenizer(["a cat", "a dog"], {padding}, return_tensors="pt")
with torch.no_grad():
    probabilities = model(**images, **texts).logits_per_image.{probability}  # (images, texts)"""


_PIPELINE_CODE = f"""from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="{HERE}")
classify("photo.jpg", candidate_labels=["a cat", "a dog"], hypothesis_template="{{}}")"""


def _open_clip(sigmoid: bool) -> str:
    logits = "similarity * model.logit_scale.exp()"
    probability = f"({logits} + model.logit_bias).sigmoid()" if sigmoid else f"({logits}).softmax(dim=1)"
    return f"""import open_clip
import torch
from PIL import Image

model, preprocess = open_clip.create_model_from_pretrained("hf-hub:{HERE}")
tokenizer = open_clip.get_tokenizer("hf-hub:{HERE}")

with torch.no_grad():
    image_features = model.encode_image(preprocess(Image.open("photo.jpg")).unsqueeze(0), normalize=True)
    text_features = model.encode_text(tokenizer(["a cat", "a dog"]), normalize=True)
    similarity = image_features @ text_features.T
    probabilities = {probability}  # (images, texts)"""


def _clipkit(sides: tuple[str, ...]) -> str:
    lines = ["import clipkit", "", f'model = clipkit.load("{HERE}")']
    if "image" in sides:
        lines.append('image_features = model.encode_image(["photo.jpg"])')
    if "text" in sides:
        lines.append('text_features = model.encode_text(["a cat", "a dog"])')
    if sides == ("image", "text"):
        lines.append('probabilities = model.classify(["photo.jpg"], ["a cat", "a dog"])  # (images, texts)')
    return "\n".join(lines)


def _towers(sides: tuple[str, ...]) -> str:
    imports = ["from huggingface_hub import snapshot_download"]
    lines = ["", f'folder = snapshot_download("{HERE}")']
    if "image" in sides:
        imports.insert(0, "import timm")
        lines.append('image_trunk = timm.create_model(f"local-dir:{folder}/image", pretrained=True, num_classes=0)')
    if "text" in sides:
        imports.append("from transformers import AutoModel")
        lines.append('text_trunk = AutoModel.from_pretrained(f"{folder}/text")')
    return "\n".join([*imports, *lines])
