"""Trunks that are distributed over processes: the same run as on one process, with a part of the memory."""

import json
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import CLIPModel, SiglipModel

import clipkit
from clipkit.errors import RecipeError
from clipkit.processes import Processes
from clipkit.recipe import OptimRecipe, Recipe
from clipkit.training.folder.run_folder import RunFolder
from clipkit.training.optimizer import build_optimizer
from clipkit.training.plan import make_plan
from clipkit.training.shards import Shards, is_sharded
from clipkit.training.step import Step
from clipkit.training.weights import Weights
from tests.conftest import read_lines
from tests.forked import ENVIRONMENT, Running, free_port, rank_variables, together
from tests.models.families import build
from tests.training import second_runs_out, sharded_runs
from tests.training.test_stop import wait_for_steps

pytestmark = pytest.mark.skipif(
    not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"), reason="train.shard needs torch 2.9"
)

Build = Callable[..., Recipe]
SGD = {"optim.name": "sgd", "optim.lr": 0.05, "optim.weight_decay": 0.0, "optim.clip": 1.0}
SHORT = {"train.epochs": 2, "train.batch_size": 8, "data.validation": None, "eval.retention": None}
KINDS: dict[str, dict[str, Any]] = {
    "one pass": {},
    "micro-batches, last blocks": {
        "train.micro_batch_size": 1, "model.image.tune": "last:1", "model.text.tune": "last:2",
    },
    "checkpointed activations": {"train.micro_batch_size": 3, "train.gradient_checkpointing": True},
    "frozen tower": {"model.image.tune": "frozen", "data.augment": "none"},
    "adapters": {
        "train.micro_batch_size": 2, "model.image.tune": "lora", "model.text.tune": "dora",
        "model.text.lora.targets": "all", "optim.lr": 5.0,
    },
    "pull, unfreezing": {
        "train.micro_batch_size": 3, "optim.pull_to_start": 1.0, "optim.unfreeze": {"last:1": 0.25, "full": 0.5},
    },
    "parts on the CPU": {"train.micro_batch_size": 3, "train.cpu_offload": True},
    "views": {
        "objective": {"captions": 1.0, "views": 1.0}, "views": {"image": {"policies": ["moco", "moco"], "head": {}}},
    },
}  # fmt: skip


def written(recipe: Build, output: Path, changes: Mapping[str, Any]) -> Path:
    file = output.with_suffix(".yaml")
    file.write_text(recipe({**SHORT, "train.shard": True, "output": str(output), **changes}).to_yaml())
    return file


def run_on(processes: int, files: list[Path]) -> None:
    if processes > 1:
        together(processes, sharded_runs.__file__, *map(str, files))
        return
    for file in files:
        sharded_runs.trained(file)


def assert_same_run(run: Path, expected: Path, start: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    """Compare losses, gradient norms and weights; differences of weights are shares of the whole update."""
    for row, other in zip(read_lines(run / "metrics.jsonl"), read_lines(expected / "metrics.jsonl"), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        assert row.get("pull", 0.0) == pytest.approx(other.get("pull", 0.0), rel=1e-4)
    found, weights = (load_file(folder / "model" / "model.safetensors") for folder in (run, expected))
    assert found.keys() == weights.keys()
    update = torch.stack([(weights[name] - start[name]).norm() for name in start]).norm()
    assert update > 0
    for name, value in weights.items():
        if not name.endswith("k_proj.bias"):  # its true gradient is zero: Adam normalizes rounding noise
            assert (found[name] - value).norm() <= tolerance * update, name


def test_two_processes_train_the_same_model_with_a_part_of_the_memory(
    recipe: Build, tmp_path: Path, tiny_clip: Path
) -> None:
    changes = {"train.micro_batch_size": 2, "optim.lr": 1e-3, "train.epochs": 1, "train.cpu_offload": True}
    for processes in (1, 2):
        run_on(processes, [written(recipe, tmp_path / f"run{processes}", changes)])
    assert_same_run(tmp_path / "run2", tmp_path / "run1", load_file(tiny_clip / "model.safetensors"), 1e-4)
    CLIPModel.from_pretrained(tmp_path / "run2" / "model")
    assert "train.shard has no effect on one process" in (tmp_path / "run1" / "log.txt").read_text()
    log = (tmp_path / "run2" / "log.txt").read_text()
    assert "each process keeps 1/2 of the trunks" in log
    assert "train.cpu_offload has no effect without a GPU" in log
    alone = json.loads((tmp_path / "run1-0-of-1.json").read_text())
    assert alone.pop("sharded") is False
    assert alone.pop("policies") == []
    for index in range(2):
        of_process = json.loads((tmp_path / f"run2-{index}-of-2.json").read_text())
        assert of_process.pop("sharded") is True
        assert of_process.pop("policies") == ["CPUOffloadPolicy"]
        for kind, count in of_process.items():
            assert 0 < count <= 0.6 * alone[kind], kind


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_sharded_runs_are_those_of_one_process(recipe: Build, tmp_path: Path, tiny_clip: Path, processes: int) -> None:
    start = load_file(tiny_clip / "model.safetensors")
    for count in (1, processes):
        run_on(count, [written(recipe, tmp_path / f"{kind}{count}", SGD | of) for kind, of in KINDS.items()])
    for kind in KINDS:
        assert_same_run(tmp_path / f"{kind}{processes}", tmp_path / f"{kind}1", start)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (2, 4)])
def test_run_resumes_on_another_number_of_processes(
    recipe: Build, tmp_path: Path, tiny_clip: Path, shapes: Path, first: int, then: int
) -> None:
    """AdamW with averaged weights, evaluations and interpolation: the run keeps the model of a run on one process."""
    changes = {
        "train.epochs": 3, "train.ema": 0.8, "optim.lr": 1e-3, "checkpoint.every_steps": 1, "checkpoint.keep_last": 9,
        "train.micro_batch_size": 2, "data.validation": str(shapes / "captions.csv"),
        "eval.interpolate": 3, "eval.retention": str(shapes / "captions.csv"), "eval.max_forgetting": 0.9,
    }  # fmt: skip
    run_on(1, [written(recipe, tmp_path / "whole", changes)])
    file = written(recipe, tmp_path / "resumed", changes)
    run_on(first, [file])
    folder = RunFolder(tmp_path / "resumed")
    for made in (folder.results, folder.report):
        made.unlink()
    for made in (folder.model, *(folder.checkpoints / f"step-{step:06d}" for step in (4, 5, 6))):
        shutil.rmtree(made)
    run_on(then, [file])
    assert "resuming after step 3" in folder.log.read_text()
    start = load_file(tiny_clip / "model.safetensors")
    assert_same_run(tmp_path / "resumed", tmp_path / "whole", start, tolerance=1e-3)
    runs = [tmp_path / run for run in ("resumed", "whole")]
    alphas = [json.loads((run / "results.json").read_text())["settings"]["alpha"] for run in runs]
    assert alphas[0] == alphas[1]
    evaluations = [read_lines(run / "evaluations.jsonl") for run in runs]
    assert [row["step"] for row in evaluations[0]] == [row["step"] for row in evaluations[1]]


def saved_by_open_clip(folder: Path) -> Path:
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "head_width": 32, "layers": 2}
    text = {"width": 64, "heads": 1, "layers": 2, "context_length": 20, "vocab_size": 49408}
    config: dict[str, Any] = {"embed_dim": 48, "vision_cfg": vision, "text_cfg": text}
    torch.save(open_clip.CLIP(**config).state_dict(), folder / "open_clip_pytorch_model.bin")
    written = {"model_cfg": config, "preprocess_cfg": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    return folder


def features_in_own_library(family: str, folder: Path) -> list[Tensor]:
    """Return features of two images and two texts from the saved model, opened without clipkit."""
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        if family == "open_clip":
            native = open_clip.create_model_from_pretrained(f"local-dir:{folder}", return_transform=False).eval()
            return [native.encode_image(pixels), native.encode_text(torch.randint(1, 900, (2, 20)))]
        native, loading = SiglipModel.from_pretrained(folder, output_loading_info=True)
        assert not any(loading[of] for of in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        tokens = torch.randint(1, 20, (2, native.config.text_config.max_position_embeddings))
        return [native.get_image_features(pixels).pooler_output, native.get_text_features(tokens).pooler_output]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["siglip", "open_clip"])
def test_other_families_are_saved_whole(recipe: Build, tmp_path: Path, family: str) -> None:
    model = saved_by_open_clip(tmp_path) if family == "open_clip" else build(family, tmp_path / family)
    changes = SGD | {"model.name": str(model), "loss.duplicates": "negative"}
    for processes in (1, 2):
        run_on(processes, [written(recipe, tmp_path / f"run{processes}", changes)])
    found, expected = (sorted((tmp_path / run / "model").glob("*.safetensors"))[0] for run in ("run2", "run1"))
    clipkit.load(tmp_path / "run2" / "model")
    features = [features_in_own_library(family, tmp_path / run / "model") for run in ("run1", "run2")]
    for alone, sharded in zip(*features, strict=True):
        torch.testing.assert_close(sharded, alone, rtol=1e-3, atol=1e-4)
    for name, value in load_file(expected).items():
        torch.testing.assert_close(load_file(found)[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_process_that_runs_out_of_memory_ends_all_with_one_line(recipe: Build, tmp_path: Path) -> None:
    file = written(recipe, tmp_path / "run", {"train.micro_batch_size": 3})
    _, errors = together(2, second_runs_out.__file__, str(file), code=1)
    lines = [line for line in errors.splitlines() if line.startswith("clipkit")]
    assert len(lines) == 2, errors
    assert any("out of memory" in line and "train.micro_batch_size" in line for line in lines)
    assert any("another process of this run has ended" in line for line in lines)
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_step(recipe: Build, tmp_path: Path) -> None:
    file, port = written(recipe, tmp_path / "run", {"train.epochs": 200}), free_port()
    group = [Running(["-m", "clipkit", "train", file], ENVIRONMENT | rank_variables(rank, 2, port)) for rank in (0, 1)]
    wait_for_steps(tmp_path / "run", 2)
    group[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=300)[1] for process in group]
    assert [process.returncode for process in group] == [143, 143], outputs
    step = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{step:06d}"]


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_parts_on_the_cpu_are_updated_there(tiny_clip: Path, device: str) -> None:
    """One process with two steps of AdamW: features and weights are those without shards."""
    pixels, tokens = torch.rand(2, 3, 32, 32, device=device), torch.randint(1, 20, (2, 9), device=device)
    processes = Processes(None)
    processes.device = torch.device(device)
    dist.init_process_group("gloo" if device == "cpu" else "nccl", store=dist.HashStore(), rank=0, world_size=1)
    trained: list[dict[str, Tensor]] = []
    try:
        for offloads in (None, True):
            model = clipkit.load(tiny_clip, device="cpu")
            weights = Weights(model.to(device)) if offloads is None else Shards(model, processes, offloads)
            optimizer = build_optimizer(weights.trained, OptimRecipe(lr=1e-2), lambda name: "pretrained")
            for _ in range(2):
                image = model.image({"pixel_values": pixels})
                text = model.text({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
                (image - text).square().sum().backward()
                weights.collect_gradients()
                weights.clip_gradients(Accelerator(cpu=device == "cpu"), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if offloads:
                on_cpu = [one.device.type == "cpu" for name, one in weights.trained.items() if ".trunk." in name]
                assert all(on_cpu)
            weights.end()
            trained.append({name: one.detach().cpu().clone() for name, one in model.named_parameters()})
    finally:
        dist.destroy_process_group()
    start = clipkit.load(tiny_clip, device="cpu").state_dict()
    for name, one in trained[0].items():
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(trained[1][name], one, rtol=1e-4, atol=1e-5, msg=name)
    assert any((one - start[name]).abs().max() > 1e-3 for name, one in trained[0].items())


class Several(Processes):
    """A group of `count` processes without communication, of which the others have at most `most` parts."""

    def __init__(self, count: int, most: int = 0) -> None:
        super().__init__(None)
        self.count, self.most = count, most

    def largest(self, value: int) -> int:
        return max(value, self.most)


def test_all_processes_have_the_same_number_of_parts(recipe: Build) -> None:
    plan = make_plan(recipe())
    step = Step(
        plan.model, {}, plan.objective.value, Several(2, most=5), plan.accelerator, 16, 4, seed=0, is_sharded=True
    )
    parts = step._equally_many(torch.arange(8).split(4))
    assert sorted(map(len, parts)) == [1, 1, 2, 2, 2]
    assert torch.cat(list(parts)).tolist() == list(range(8))


@pytest.mark.parametrize(
    ("count", "batch_size", "precision", "shown"),
    [(1, 7, "fp16", None), (2, 8, "bf16", None), (2, 7, "no", "train.batch_size is 7"), (4, 8, "fp16", "fp16")],
)
def test_runs_that_cannot_be_sharded(
    recipe: Build, count: int, batch_size: int, precision: str, shown: str | None
) -> None:
    requested = recipe({"train.shard": True, "train.batch_size": batch_size})
    if shown is None:
        assert is_sharded(requested, Several(count), precision) is (count > 1)
        return
    with pytest.raises(RecipeError, match=shown):
        is_sharded(requested, Several(count), precision)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.compile", True),
        ("data.views", 2),
    ],
)
def test_keys_that_do_not_apply_to_shards(recipe: Build, key: str, value: object) -> None:
    with pytest.raises(RecipeError, match=f"train.shard does not support {key}"):
        recipe({key: value, "train.shard": True})
    with pytest.raises(RecipeError, match="train.cpu_offload"):
        recipe({"train.cpu_offload": True})
