"""Operations counted from the modules, peaks of devices, and the speed of a run in its log and progress bar."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import clipkit
from clipkit.data import Batch, IndexedFeed, Policy, TextView, read_pairs
from clipkit.models import DualEncoder
from clipkit.models.towers import TRUNK_FEATURES
from clipkit.models.tuning import tune
from clipkit.processes import Processes
from clipkit.recipe import Recipe
from clipkit.training import recorder, run
from clipkit.training.inputs import TowerInputs
from clipkit.training.objectives.objective import Encoded
from clipkit.training.recorder import _postfix
from clipkit.training.throughput import Throughput, Work, peak_of, throughput_of, works_of
from tests.conftest import read_lines
from tests.models.families import FAMILIES, build

# The tiny CLIP: 3 blocks of width 32 and 64; 16 patches of 8 × 8 pixels and a class token; 24 features.
WIDTH, HIDDEN, BLOCKS, PATCHES, DIM = 32, 64, 3, 16, 24


def block_operations(tokens: int) -> int:
    """Multiplications and additions of all blocks: projections, attention, and the two layers of the MLP."""
    products = 4 * WIDTH * WIDTH + 2 * WIDTH * HIDDEN
    return BLOCKS * (2 * tokens * products + 4 * tokens * tokens * WIDTH)


def inputs_of(model: DualEncoder, shapes: Path, augmented: bool = True) -> TowerInputs:
    pairs = read_pairs(str(shapes / "captions.csv"))
    preprocess = model.image.preprocess
    encoded = {
        "image_features": Encoded("image", Policy((), 32, preprocess.of_crop, preprocess, 0)),
        "text_features": Encoded("text", TextView("same", pairs)),
    }
    processes = Processes(Accelerator(cpu=True))
    return TowerInputs(model, IndexedFeed(pairs), processes, encoded, augmented=augmented)


@pytest.fixture
def model(tiny_clip: Path) -> DualEncoder:
    loaded = clipkit.load(tiny_clip, device="cpu")
    for tower in (loaded.image, loaded.text):
        tune(tower, "full")
    return loaded


def test_operations_are_those_of_the_architecture(model: DualEncoder, shapes: Path) -> None:
    works = works_of(inputs_of(model, shapes))
    head = 2 * WIDTH * DIM
    image = block_operations(PATCHES + 1) + 2 * PATCHES * 3 * 8 * 8 * WIDTH + head
    assert works["image_features"].polynomial.tolist() == [3 * image]
    for tokens in (1, 7, 40, 77):
        counted = np.polyval(works["text_features"].polynomial, tokens)
        assert counted == pytest.approx(3 * (block_operations(tokens) + head), rel=1e-9)


def test_padding_is_not_counted(model: DualEncoder, shapes: Path) -> None:
    throughput = Throughput(1e12, works_of(inputs_of(model, shapes)))

    def batch(captions: list[str]) -> Batch:
        ids = torch.arange(len(captions))
        pixels = torch.zeros(len(captions), 3, 32, 32)
        return Batch(
            {"image_features": {"pixel_values": pixels}, "text_features": model.text.tokenize(captions)}, ids, ids, ids
        )

    short, long = "a red square", "the circle is blue and the stripe is green"
    together = throughput.operations(batch([short, long]))
    assert together == pytest.approx(throughput.operations(batch([short])) + throughput.operations(batch([long])))
    assert throughput.share(batch([short, long]), 0.5) == pytest.approx(together / 0.5 / 1e12)
    assert replace(throughput, peak=None).share(batch([short]), 0.5) is None


@pytest.mark.parametrize(
    ("method", "passes"), [("full", 3.0), ("last:1", 1 + 2 / BLOCKS), ("last:2", 1 + 4 / BLOCKS), ("head", 1.0)]
)
def test_frozen_blocks_have_no_backward_pass(model: DualEncoder, shapes: Path, method: str, passes: float) -> None:
    for tower in (model.image, model.text):
        tune(tower, method)
    counted = works_of(inputs_of(model, shapes))["image_features"].polynomial
    patches = 2 * PATCHES * 3 * 8 * 8 * WIDTH
    assert counted.tolist() == pytest.approx([passes * (block_operations(PATCHES + 1) + patches) + 6 * WIDTH * DIM])


def test_only_the_head_runs_on_stored_features(model: DualEncoder, shapes: Path) -> None:
    for tower in (model.image, model.text):
        tune(tower, "head")
    inputs = inputs_of(model, shapes, augmented=False)
    works = works_of(inputs)
    assert {work.polynomial.tolist()[0] for work in works.values()} == {3 * 2 * WIDTH * DIM}
    assert works["image_features"].operations({TRUNK_FEATURES: torch.zeros(5, WIDTH)}) == 5 * 3 * 2 * WIDTH * DIM


def test_counting_changes_nothing(model: DualEncoder, shapes: Path) -> None:
    inputs = inputs_of(model, shapes)
    model.text.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    works_of(inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_counted(family: str, tmp_path: Path, shapes: Path) -> None:
    model = clipkit.load(build(family, tmp_path / "model"), device="cpu")
    for tower in (model.image, model.text):
        tune(tower, "full")
    works = works_of(inputs_of(model, shapes))
    tokens = model.text.tokenize(["a red square", "the circle is blue"])
    assert works["image_features"].polynomial[0] > 0
    assert works["text_features"].operations(tokens) > 0
    if not model.text.padding_may_be_cut or "attention_mask" not in tokens:
        assert len(works["text_features"].polynomial) == 1


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 80GB HBM3", "fp16", 989),
        ("NVIDIA H100 80GB HBM3", "fp32", 67),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA GH200 480GB", "bf16", 989),
        ("NVIDIA B200", "bf16", 2250),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA A10G", "bf16", None),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("Tesla T4", "fp16", 65),
        ("NVIDIA GeForce RTX 4090", "bf16", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "bf16", None),
        ("AMD Instinct MI300X", "bf16", 1307),
        ("cpu", "fp32", None),
    ],
)
def test_peaks_of_devices(name: str, precision: str, tera: float | None) -> None:
    assert peak_of(name, precision) == (None if tera is None else pytest.approx(tera * 1e12))


def test_fp32_with_tf32_has_its_own_peak() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert peak_of("NVIDIA A100-SXM4-40GB", "fp32") == pytest.approx(156e12)
    finally:
        torch.set_float32_matmul_precision(before)


def test_speed_log_has_the_share_of_a_known_peak(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clipkit.train(recipe())
    keys = {"step", "pairs_per_second", "step_seconds", "data_wait_seconds", "waiting", "memory_bytes"}
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for row in read_lines(tmp_path / "run" / "speed.jsonl"):
        assert set(row) == keys
        both = row["data_wait_seconds"] + row["step_seconds"]
        assert row["waiting"] == pytest.approx(row["data_wait_seconds"] / both, abs=0.02)

    def known(plan: Any, inputs: TowerInputs) -> Throughput:
        assert throughput_of(plan, inputs).peak is None  # a CPU
        return Throughput(1e15, works_of(inputs))

    monkeypatch.setattr(run, "throughput_of", known)
    monkeypatch.setattr(recorder, "round", lambda value, digits: value, raising=False)
    clipkit.train(recipe(), overwrite=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics
    for row in read_lines(tmp_path / "run" / "speed.jsonl"):
        assert set(row) == {*keys, "mfu"}
        operations = row["mfu"] * row["step_seconds"] * 1e15
        image = 3 * (block_operations(PATCHES + 1) + 2 * PATCHES * 3 * 8 * 8 * WIDTH + 2 * WIDTH * DIM)
        assert 8 * image < operations < 8 * (image + 3 * block_operations(16))


def test_progress_bar_shows_waiting_only_if_it_matters() -> None:
    speed = {"waiting": 0.123, "mfu": 0.314, "memory_bytes": 46.7e9}
    assert _postfix(2.3456, speed) == "loss 2.346, waiting 12%, mfu 31%, 46.7 GB"
    assert _postfix(2.0, {"waiting": 0.04, "memory_bytes": 1e9}) == "loss 2.000, 1.0 GB"


def test_texts_of_a_fixed_length_are_counted_by_rows() -> None:
    assert Work(np.array([7.0])).operations({"input_ids": torch.zeros(3, 64)}) == 21


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"image": {"tune": "head"}, "text": {"tune": "frozen"}}, "data.augment": "none"},
        {
            "objective": {"captions": 1.0, "views": 1.0},
            "views": {
                "image": {"policies": ["moco", "moco"], "head": {"norm": "layer", "keep": True}},
                "text": {"policies": ["crop", "sibling"]},
            },
        },
    ],
    ids=["stored features", "views"],
)
def test_every_kind_of_input_is_counted(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, Any]
) -> None:
    counted: list[Throughput] = []

    def known(plan: Any, inputs: TowerInputs) -> Throughput:
        counted.append(Throughput(1e12, works_of(inputs)))
        assert counted[0].works.keys() == inputs.encoders.keys()
        return counted[0]

    monkeypatch.setattr(run, "throughput_of", known)
    if "model" in changes:
        changes = {**changes, "model": {**changes["model"], "name": recipe().model.name}}
    clipkit.train(recipe({**changes, "train.epochs": 1}))
    assert all(work.polynomial.max() > 0 for work in counted[0].works.values())
    assert all(row["mfu"] >= 0 for row in read_lines(tmp_path / "run" / "speed.jsonl"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_run_on_a_known_gpu_logs_its_share(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    if peak_of(torch.cuda.get_device_name(), "bf16") is None:
        pytest.skip("the peak of this GPU is unknown")
    clipkit.train(recipe({"train.precision": "bf16"}))
    assert all(0 <= row["mfu"] < 1 for row in read_lines(tmp_path / "run" / "speed.jsonl"))
