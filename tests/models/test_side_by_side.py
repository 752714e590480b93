"""Several batches at the same time on a CPU: same results in the same order, whatever the threads do."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import clipkit
from clipkit.errors import DataError
from clipkit.models import DualEncoder, encode
from clipkit.models.encode import encode_images, encode_strings, tower_features, trunk_features
from clipkit.models.side_by_side import side_by_side, threads_for


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tiny_clip: Path) -> DualEncoder:
    return clipkit.load(tiny_clip)


class Remembering(nn.Module):
    """Module that keeps a value between its two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))
        self.register_buffer("shift", torch.tensor(1.0))
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        time.sleep(0.001 * (int(x) % 3))
        assert self.kept is x
        return self.weight * self.kept + self.shift


@pytest.mark.usefixtures("two_threads")
def test_order_and_state_are_those_of_one_thread() -> None:
    batches = [torch.tensor(float(number)) for number in range(40)]
    module = Remembering()
    seen: set[tuple[int, int]] = set()

    def run(module: Remembering, batch: Tensor) -> Tensor:
        seen.add((module.weight.data_ptr(), module.shift.data_ptr()))
        assert torch.get_num_threads() == 1
        return module(batch)

    results = list(side_by_side(module, batches, run, threads=2))
    assert [result.item() for result in results] == [3.0 * number + 1.0 for number in range(40)]
    assert seen == {(module.weight.data_ptr(), module.shift.data_ptr())}, "copies share weights and buffers"
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_error_of_a_batch_ends_the_work() -> None:
    ran: list[int] = []

    def run(module: nn.Module, batch: int) -> int:
        ran.append(batch)
        if batch == 5:
            raise DataError("5 is unreadable")
        return batch

    results = side_by_side(nn.Identity(), range(1000), run, threads=2)
    with pytest.raises(DataError, match="5"):
        list(results)
    assert len(ran) < 20
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_few_batches_and_one_core_need_no_threads() -> None:
    assert threads_for(nn.Identity(), 3) == 1
    assert threads_for(nn.Identity(), 4) == 2
    torch.set_num_threads(1)
    assert threads_for(nn.Identity(), 1000) == 1


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("through", [tower_features, trunk_features])
def test_images_have_the_features_of_one_thread(model: DualEncoder, tmp_path: Path, through: Any) -> None:
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 256, (40 + n, 50, 3), dtype=np.uint8)) for n in range(23)]
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    several = [*images[:9], tmp_path / "broken.jpg", *images[9:]]
    bad: dict[int, str] = {}
    sizes: list[int] = []

    def counted(tower: Any, inputs: dict[str, Tensor]) -> Tensor:
        assert torch.is_inference_mode_enabled()
        sizes.append(len(inputs["pixel_values"]))
        return through(tower, inputs)

    rows = encode_images(model.image, several, counted, None, model.device, bad=bad)
    assert sizes == [2] * 12
    assert list(bad) == [9]
    torch.set_num_threads(1)
    expected = encode_images(model.image, several, through, None, model.device, bad={})
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-6)
    torch.set_num_threads(2)
    with pytest.raises(DataError, match=r"broken\.jpg"):
        encode_images(model.image, several, through, None, model.device)


@pytest.mark.usefixtures("two_threads")
def test_strings_have_the_features_of_one_thread(model: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_THREAD_STRINGS", 16)
    texts = [f"a {'very ' * (n % 7)}small dog {n % 90}" for n in range(200)]
    sizes: list[int] = []

    def counted(tower: Any, inputs: dict[str, Tensor]) -> Tensor:
        sizes.append(len(inputs["input_ids"]))
        return tower_features(tower, inputs)

    rows = encode_strings(model.text, texts, counted, None, model.device)
    assert max(sizes) == 16
    assert sum(sizes) == len(set(texts))
    torch.set_num_threads(1)
    expected = encode_strings(model.text, texts, tower_features, None, model.device)
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("two_threads")
def test_outputs_are_kept_in_order(model: DualEncoder) -> None:
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(30)]
    kept: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        kept.append(output)
        return output

    rows = encode_images(model.image, images, tower_features, None, model.device, keep=keep)
    assert torch.equal(torch.cat(kept), rows)
