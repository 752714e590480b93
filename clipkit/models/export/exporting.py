"""Function `export`: write a model for another library, and delete the folder if the features differ."""

import io
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from PIL import Image

from clipkit.errors import OutputError
from clipkit.export_formats import export_format
from clipkit.files import replacing, sharing_files
from clipkit.images import ImageLike, Stored, open_image
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.export.comparison import Comparison, changed, run_card
from clipkit.models.export.format import Format, Proof
from clipkit.models.export.samples import CAPTIONS, has_odd_margins, image_files
from clipkit.models.one_tower import check_whole
from clipkit.models.preprocess import Resize
from clipkit.models.publish.card import export_card
from clipkit.models.publish.push import CARD
from clipkit.models.publish.usage import first_code, usage


def export(
    model: DualEncoder,
    to: str,
    out: str | Path,
    *,
    int8: bool = False,
    tolerance: float | None = None,
    images: Sequence[ImageLike] | None = None,
    captions: Sequence[str] | None = None,
) -> Proof:
    """Write a model in the layout of another library, and verify that this library computes the same features.

    The folder also gets a README.md with code that loads the model. For the verification, this code encodes image files
    and captions.

    Args:
        model: model in float32, as returned by `load`.
        to: name of a format in `FORMATS`.
        out: a new or empty folder.
        int8: quantize the weights to 8 bits; only for onnx.
        tolerance: largest allowed difference in a value of the unit-length features. Default: 1e-5, or 1e-4 for onnx.
            With `int8`, the default instead requires a mean cosine of at least 0.99.
        images: images to compare. Default: built-in images, e.g. transparent, palette, CMYK or 16-bit.
        captions: captions to compare. Default: built-in captions, e.g. empty, or with HTML entities.

    Returns:
        The differences found, and Python code that loads the folder.

    Raises:
        ModelError: the model cannot be exported to this format, or the features differ. No files are kept.
        OutputError: the folder is not empty or not writable.

    Example:
        >>> export(load("openai/clip-vit-base-patch32"), "open_clip", "clip_for_open_clip")   # doctest: +SKIP
    """
    out = Path(out)
    target = _format(to, {"int8": True} if int8 else {})
    check_whole(model)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: already exists; give an empty or a new folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary, tempfile.TemporaryDirectory() as samples:
            temporary.mkdir()
            with sharing_files(temporary):
                notes = target.write(model, temporary)
            side = model.image.preprocess.image_size or 96
            files = _files(images, side, Path(samples)) if "image" in model.sides else {}
            texts = _named(captions) if "text" in model.sides else {}
            proof = _prove(model, target, temporary, out, tolerance, notes, files, texts)
            card = export_card(target.layout(model, temporary), str(out), proof.notes)
            (temporary / CARD).write_text(card, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out}: is not writable ({error.strerror or error}); give another folder") from None
    return proof


def _format(name: str, options: dict[str, bool]) -> Format:
    row = export_format(name, options)
    module = import_module(f"clipkit.models.export.{row.module}")
    target: Format = getattr(module, row.class_name)(**options)
    return target


def _files(images: Sequence[ImageLike] | None, side: int, folder: Path) -> dict[str, Path]:
    """Write images to files, and return the files by name.

    None selects the built-in images for a model with input size `side`. Images that are files already stay in place.
    """
    if images is None:
        contents = image_files(side)
        for number, content in enumerate(contents.values()):
            (folder / str(number)).write_bytes(content)
        return {kind: folder / str(number) for number, kind in enumerate(contents)}
    files = {}
    for number, image in enumerate(images):
        file = Path(image) if isinstance(image, str | Path) else folder / str(number)
        if isinstance(image, Stored):
            file.write_bytes(image.read_bytes())
        elif not isinstance(image, str | Path):
            file.write_bytes(_png(image))
        files[f"image {number} ({image})" if isinstance(image, str | Path | Stored) else f"image {number}"] = file
    return files


def _png(image: ImageLike) -> bytes:
    """Convert an image to the bytes of a PNG file."""
    written = image if isinstance(image, Image.Image) and image.mode in _PNG else open_image(image)
    file = io.BytesIO()
    written.save(file, "PNG")
    return file.getvalue()


_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def _named(captions: Sequence[str] | None) -> Mapping[str, str]:
    if captions is None:
        return CAPTIONS
    return {f"caption {number} ({caption[:40]!r})": caption for number, caption in enumerate(captions)}


def _prove(
    model: DualEncoder,
    target: Format,
    written: Path,
    out: Path,
    tolerance: float | None,
    notes: list[str],
    images: Mapping[str, Path],
    captions: Mapping[str, str],
) -> Proof:
    layout, known = target.layout(model, written), list(notes)
    limit = target.tolerance if tolerance is None else tolerance
    library = "onnxruntime" if layout.library == "onnx" else layout.library
    code, odd = first_code(usage(layout, str(written))), _odd(model, target, images)
    our_images = model.encode_image(images.values()) if images else None  # the error names files that cannot be read
    our_texts = model.encode_text(captions.values()) if captions else None
    theirs = run_card(code, model, library, list(images.values()), list(captions.values()))
    for what, given, found in (("images", images, theirs.image), ("captions", captions, theirs.text)):
        if given and found is None:
            raise NotImplementedError(
                f"the card's code for {library} computes no features of {what}, so the export cannot be compared; "
                "write it in clipkit/models/publish/usage.md.jinja"
            )
    of_images, texts = Comparison(images, theirs.image, our_images, odd), Comparison(captions, theirs.text, our_texts)
    if of_images.largest_excused > limit:
        notes.append(
            "the center crops of the two libraries are one pixel apart if an odd number of pixels is cut off; "
            "the features of such images differ by up to "
            f"{of_images.largest_excused:.2g}"
        )
    for advice, compared, plain in (
        (f"open images with rgb() as in {CARD}; otherwise, some features differ", of_images, theirs.plain_image),
        (f"prepare captions as in {CARD}; otherwise, some features differ", texts, theirs.plain_text),
    ):
        if plain is not None and (kinds := compared.above(limit, plain)):
            notes.append(f"{advice} ({kinds})")
    proof = Proof(
        images=len(images) - len(odd),
        captions=len(captions),
        image_difference=of_images.largest,
        text_difference=texts.largest,
        image_cosine=of_images.cosine,
        text_cosine=texts.cosine,
        changed=changed(of_images, texts),
        usage=target.usage(out),
        notes=notes,
    )
    for kind, compared in (("images", of_images), ("captions", texts)):
        if target.least_cosine is not None and tolerance is None:
            compared.check_cosine(target.least_cosine, kind, model.name)
        else:
            compared.check(limit, kind, model.name, known)
    return proof


def _odd(model: DualEncoder, target: Format, images: Mapping[str, Path]) -> set[str]:
    """Return the names of the images that the two libraries crop at different positions.

    This happens if a crop cuts off an odd number of pixels and the libraries round differently.
    """
    steps, side = model.image.preprocess.steps, model.image.preprocess.image_size
    if not isinstance(steps, Resize) or side is None or steps.mode != "shortest":
        return set()
    if target.crop_offset in (None, steps.crop_offset) or model.backend.library == "clipkit":
        return set()
    return {kind for kind, file in images.items() if has_odd_margins(open_image(file).size, steps.size, side)}
