"""Compares each loss by Triton's kernels with itself in float64; run by test_halves.py with `TRITON_INTERPRET=1`.

Without an argument, only a few.
"""

import sys
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit import losses
from clipkit.losses import plain, tiles

for name in [name for name in sys.modules if name.startswith("triton") and not name.startswith("triton._C")]:
    del sys.modules[name]  # imported without the variable, its functions are not interpreted

from clipkit.losses import halves  # noqa: E402

G, ROWS = 24, slice(3, 22)
IDS = {"image_ids": torch.arange(G) // 3, "caption_ids": torch.arange(G) % 11}
IGNORED = {**IDS, "duplicates": "ignore"}
CASES = {
    "infonce": [(1.0, {}), (100.0, {}), (-100.0, {}), (20.0, {"rows": ROWS}), (20.0, IGNORED)],
    "sigmoid": [(10.0, {"bias": -10.0}), (100.0, {"bias": 5.0, **IGNORED})],
    "ntxent": [(20.0, IGNORED)],
    "dcl": [(20.0, IDS)],
}


def small_blocks(few: bool) -> None:
    """Use several tiles of several blocks, the last ones partial."""
    described = few and find_spec("triton.tools.tensor_descriptor") is not None  # since Triton 3.4
    sizes = halves.Blocks(16, 16, 16, 4, 1, described)
    halves._blocks = lambda device: sizes
    halves._ROWS, halves._WIDTH, halves._REDUCED, halves._WEIGHED = 16, 16, (16, 32), (32, 16)
    tiles._SMALL = 0


def features(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, noise = (F.normalize(torch.randn(G, 20, generator=generator, dtype=dtype), dim=-1) for _ in range(2))
    return [image, F.normalize(image + 0.5 * noise, dim=-1)]


def results(name: str, scale: float, options: dict, dtype: torch.dtype) -> list[Tensor]:
    """Return the loss and the gradients of features, scale and bias."""
    given = {key: torch.tensor(value, dtype=dtype, requires_grad=True) if key == "bias" else value
             for key, value in options.items()}  # fmt: skip
    leaves = [one.float().to(dtype).requires_grad_() for one in features()]
    leaves.append(torch.tensor(scale, dtype=dtype, requires_grad=True))
    loss = getattr(losses, name)(*leaves, **given)
    leaves += [given[key] for key in given if key == "bias"]
    return [loss, *torch.autograd.grad(loss, leaves)]


def main(few: bool) -> None:
    small_blocks(few)
    for name, cases in list(CASES.items())[: 2 if few else None]:
        for scale, options in cases[-1:] if few else cases:
            exact = results(name, scale, options, torch.float64)
            tiles._kernels = lambda device: plain
            single = results(name, scale, options, torch.float32)
            tiles._kernels = lambda device: halves
            found, again = (results(name, scale, options, torch.float32) for _ in range(2))
            assert all(map(torch.equal, found, again))
            for ours, float32, wanted in zip(found, single, exact, strict=True):
                error, usual = ((one - wanted).abs().max() for one in (ours, float32))
                assert error < 4 * usual + 1e-6 * (1 + wanted.abs().max()), (name, scale, options.keys(), error, usual)
    if few:
        return
    image, text = (one.float() for one in features())
    for factor in (0.0, 1e-20, 1e4, 1e20):  # of any length
        found, exact = (losses.infonce(one * factor, two, 1 / max(factor, 1e-20))
                        for one, two in ((image, text), (image.double(), text.double())))  # fmt: skip
        assert abs(found - exact) < 1e-5, factor
    for bad in (torch.nan, torch.inf):
        assert losses.infonce(torch.cat([image[:-1], torch.full((1, 20), bad)]), text, 10.0).isnan()
    many = torch.ones(G).long()
    alone = losses.infonce(image, text, 50.0, image_ids=many, caption_ids=torch.arange(G), duplicates="ignore")
    assert abs(alone) < 1e-5


if __name__ == "__main__":
    main(few=len(sys.argv) == 1)
