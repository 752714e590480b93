"""A run: from a recipe to a model, and everything it leaves in its folder."""

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from clipkit.data import Batch, EpochSampler, read_pairs
from clipkit.errors import TrainingError
from clipkit.evaluation import Result, retrieval_result
from clipkit.metrics import recalls, retrieval_ranks
from clipkit.models import load
from clipkit.recipe import Recipe
from clipkit.report import run_report
from clipkit.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from clipkit.training.inputs import TowerInputs
from clipkit.training.objective import objective_of
from clipkit.training.optimizer import WarmupCosine, build_optimizer
from clipkit.training.processes import Processes
from clipkit.training.run_folder import RunFolder, append
from clipkit.training.setup import accelerator_of, micro_batch_size_of, model_of
from clipkit.training.step import Step

log = logging.getLogger("clipkit")

# CLIP clips the scale at 100 "to prevent training instability" (Radford et al. 2021, 2.5).
_LARGEST_LOGIT_SCALE = math.log(100)


def train(
    recipe: str | Path | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train what the recipe says and fill its run folder.

    Args:
        recipe: a YAML file or a Recipe.
        overrides: `{"optim.lr": 1e-5}` and the like.
        resume: go on from the newest checkpoint of the run in `output`; start where there is none.
        overwrite: replace the run in `output`.

    Returns:
        What `results.json` holds: the chosen weights' metrics on the validation pairs.

    Raises:
        UserError: the recipe, the data, the model or the output cannot be used; nothing was changed.

    Example:
        >>> train("recipes/finetune_clip.yaml", {"data.train": "mine.csv"})    # doctest: +SKIP
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe.from_yaml(recipe)
    return _Run(recipe.override(overrides or {}), resume, overwrite).go()


class _Run:
    def __init__(self, recipe: Recipe, resume: bool, overwrite: bool) -> None:
        self.recipe = recipe
        self.folder = RunFolder(recipe.output)
        self.folder.claim(resume, overwrite)
        self.pairs = read_pairs(recipe.data.train)
        self.validation = read_pairs(recipe.data.validation) if recipe.data.validation else None
        self.sampler = EpochSampler(self.pairs, recipe.data.captions, recipe.train.batch_size, recipe.train.seed)
        self.steps = recipe.train.epochs * self.sampler.steps_per_epoch
        self.schedule = WarmupCosine(recipe.optim.lr, recipe.optim.warmup, self.steps)

        self.accelerator = accelerator_of(recipe.train.precision)
        self.processes = Processes(self.accelerator)
        torch.manual_seed(recipe.train.seed)  # new parts of a model are the same on every process
        self.model = model_of(recipe).to(self.accelerator.device)
        self.largest_scale = max(_LARGEST_LOGIT_SCALE, self.model.logit_scale.item())
        self.optimizer = self.accelerator.prepare(build_optimizer(self.model, recipe.optim))
        self.best: dict[str, Any] | None = None
        self.step = 0
        self.settings: dict[str, Any] = {}
        self._open_folder(resume)

    def _open_folder(self, resume: bool) -> None:
        found = checkpoints(self.folder.checkpoints) if resume else []
        self.processes.wait()  # all have seen the folder as it was before the first one changes it
        if found:
            state = load_checkpoint(found[-1], self.model, self.optimizer.optimizer)
            self.step, self.best = state["step"], state["best"]
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.processes.is_main:
            if found:
                self.folder.cut_after(self.step)
            else:
                self.folder.clear()
            self.folder.recipe.write_text(self.recipe.to_yaml(), encoding="utf-8")
        self.processes.wait()

    def go(self) -> dict[str, Any]:
        handler = logging.FileHandler(self.folder.log) if self.processes.is_main else logging.NullHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.setLevel(logging.INFO)
        log.addHandler(handler)
        try:
            started = time.perf_counter()
            self._say_what_starts()
            self._loop()
            return self._finish(started)
        finally:
            log.removeHandler(handler)
            handler.close()

    def _say(self, message: str) -> None:
        if self.processes.is_main:
            log.info(message)

    def _say_what_starts(self) -> None:
        pairs, recipe, model = self.pairs, self.recipe, self.model
        learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
        count, kind = self.processes.count, self.accelerator.device.type
        joined = f" joined by {torch.distributed.get_backend()}" if count > 1 else ""
        self._say(
            f"{count} process{'es' * (count > 1)} on {kind}{joined}, "
            f"{self.accelerator.mixed_precision.replace('no', 'fp32')}; {model.name}: "
            f"{learning / 1e6:.2f} M of {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters learn"
        )
        self._say(
            f"{pairs.name}: {len(pairs.pictures)} pictures, {len(pairs.captions)} captions; "
            f"{recipe.train.epochs} epochs of {self.sampler.steps_per_epoch} steps of {recipe.train.batch_size} pairs"
        )
        if self.step:
            self._say(f"goes on after step {self.step}")

    def _loop(self) -> None:
        recipe = self.recipe
        inputs = TowerInputs(self.model, self.pairs, self.processes, recipe.data.augment != "none")
        if inputs.image_store is not None or inputs.text_store is not None:
            stored = [
                name
                for name, store in (("pictures", inputs.image_store), ("captions", inputs.text_store))
                if store is not None
            ]
            self._say(f"frozen trunks ran once over all {' and '.join(stored)}")
        self.validation_inputs = (
            TowerInputs(self.model, self.validation, self.processes, augmented=False) if self.validation else None
        )
        micro_batch_size = micro_batch_size_of(recipe, self.model, inputs, self.pairs, self.processes, self.accelerator)
        self._say(f"micro-batches of {micro_batch_size} pairs on each process")
        self.settings["processes"] = self.processes.count
        self.settings["micro_batch_size"] = micro_batch_size
        self.backward = Step(
            self.model,
            objective_of(recipe.loss),
            self.processes,
            self.accelerator,
            recipe.train.batch_size,
            micro_batch_size,
            recipe.train.seed,
        )
        batches = inputs.batches(self.sampler, recipe.data, recipe.train.seed, self.step, self.steps)
        bar = tqdm(
            total=self.steps * recipe.train.batch_size,
            initial=self.step * recipe.train.batch_size,
            unit=" pairs",
            unit_scale=True,
            # None: shown on a terminal only.
            disable=None if self.processes.is_main else True,
        )
        with bar:
            waited_from = time.perf_counter()
            for batch in batches:
                began = time.perf_counter()
                row = self._step(batch)
                bar.update(recipe.train.batch_size)
                bar.set_postfix_str(f"loss {row['loss']:.3f}")
                if self.processes.is_main and (self.step % recipe.train.log_every == 0 or self.step == self.steps):
                    append(self.folder.metrics, row)
                    seconds = time.perf_counter() - began
                    speed = {
                        "step": self.step,
                        "pairs_per_second": round(recipe.train.batch_size / (seconds + began - waited_from), 2),
                        "step_seconds": round(seconds, 4),
                        "data_wait_seconds": round(began - waited_from, 4),
                    }
                    append(self.folder.speed, speed)
                self._after_step(row)
                waited_from = time.perf_counter()

    def _step(self, batch: Batch) -> dict[str, Any]:
        recipe, lr = self.recipe, self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self.backward(batch, self.step)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        norm = self.accelerator.clip_grad_norm_(parameters, recipe.optim.clip or math.inf)
        # With fp16 a gradient that overflows is the scaler's business, which skips the step and scales less.
        if not loss.isfinite() or (self.accelerator.scaler is None and not norm.isfinite()):
            self._stop_at_last_good(batch, loss.item(), float(norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        if recipe.loss.name == "infonce":
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=self.largest_scale)
        self.step += 1
        return {
            "step": self.step,
            "epoch": round(self.step / self.sampler.steps_per_epoch, 4),
            "seen": self.step * recipe.train.batch_size,
            "loss": loss.item(),
            "lr": lr,
            "scale": self.model.logit_scale.exp().item(),
            "grad_norm": float(norm),
        }

    def _after_step(self, row: dict[str, Any]) -> None:
        recipe = self.recipe
        epoch, within = divmod(self.step, self.sampler.steps_per_epoch)
        last = self.step == self.steps
        if within == 0 and (last or epoch % recipe.eval.every_epochs == 0):
            figures = self._evaluate()
            found = "".join(f", {name} {value:.4f}" for name, value in figures.items() if name == recipe.eval.metric)
            self._say(f"epoch {epoch}/{recipe.train.epochs}, step {self.step}: loss {row['loss']:.4f}{found}")
        if last or self.step % recipe.checkpoint.every_steps == 0:
            self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        if self.processes.is_main:
            scaler = self.accelerator.scaler
            state = {"best": self.best, "scaler": scaler.state_dict() if scaler is not None else None}
            keep = self.recipe.checkpoint.keep_last
            save_checkpoint(self.folder.checkpoints, self.step, self.model, self.optimizer.optimizer, state, keep)
        self.processes.wait()

    def _stop_at_last_good(self, batch: Batch, loss: float, norm: float) -> None:
        """Nothing was updated yet: keep the state, say which pictures the step had, and stop."""
        rows = batch.image_ids[:, None].to(self.accelerator.device)
        images = self.processes.gather(rows, self.recipe.train.batch_size)[:, 0].tolist()
        names = [self.pairs.pictures[image].name for image in images]
        self._save_checkpoint()
        self._say(f"pictures of step {self.step + 1}: {' '.join(names)}")
        raise TrainingError(
            f"step {self.step + 1}: the loss is {loss:.4g} and the gradient's norm {norm:.4g}; the weights after step "
            f"{self.step} are in {self.folder.checkpoints}, its pictures ({names[0]}, …) in {self.folder.log}; try a "
            "lower optim.lr, optim.clip, or train.precision: fp32"
        )

    def _evaluate(self) -> dict[str, float]:
        """Score the validation pairs, and keep these weights where they are the best so far."""
        if self.validation is None or self.validation_inputs is None:
            return {}
        image_features, text_features = self.validation_inputs.features()
        ranks = retrieval_ranks(image_features, text_features, torch.from_numpy(self.validation.image_of_caption))
        figures = recalls(*ranks)
        value = figures[self.recipe.eval.metric]
        if self.processes.is_main:
            append(self.folder.evaluations, {"step": self.step, **figures})
        if self.best is None or value > self.best["value"]:
            self.best = {"step": self.step, "metric": self.recipe.eval.metric, "value": value}
            self._save_model()
        return figures

    def _save_model(self) -> None:
        if self.processes.is_main:
            self.model.save(self.folder.model)
        self.processes.wait()

    def _finish(self, started: float) -> dict[str, Any]:
        if self.best is None:
            self._save_model()
        results = self._results()
        results["settings"]["best"] = self.best
        results["settings"] |= {"steps": self.steps, **self.settings}
        results["seconds"] = round(time.perf_counter() - started, 2)
        if self.processes.is_main:
            self.folder.results.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
            self.folder.report.write_text(run_report(self.folder.path), encoding="utf-8")
            self._say(f"done in {results['seconds']:.0f} s: {self.folder.model}, {self.folder.report}")
        self.processes.wait()
        return results

    def _results(self) -> dict[str, Any]:
        name = str(self.folder.path)
        if self.validation is None or self.validation_inputs is None:
            return {"task": "train", "model": name, "data": {}, "metrics": {}, "settings": {}, "examples": []}
        if self.best is not None and self.best["step"] != self.step:
            # What is reported is what was saved.
            self.model.load_state_dict(load(self.folder.model, device="cpu").state_dict())
        image_features, text_features = self.validation_inputs.features()
        result: Result = retrieval_result(image_features, text_features, self.validation, name, 0.0)
        return dict(result)
