"""A run: from a recipe to a model, and everything it leaves in its folder."""

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from tqdm import tqdm

from clipkit.data import Batch, WorkerProgress
from clipkit.errors import TrainingError, one_line
from clipkit.evaluation import to_json, versions
from clipkit.files import write_whole
from clipkit.images import pixel_limit
from clipkit.models.publish.layout import layout_of
from clipkit.models.publish.push import signed
from clipkit.processes import Processes, accelerator_of
from clipkit.recipe import Recipe
from clipkit.report import model_card, run_report
from clipkit.training.augmented_sheet import augmented_sheet
from clipkit.training.folder.bad_samples import BadSamples
from clipkit.training.folder.checkpoint import (
    checkpoint_of,
    checkpoint_steps,
    read_state,
    remove_checkpoint,
    remove_leftovers,
)
from clipkit.training.folder.keeper import Keeper
from clipkit.training.folder.learned import Learned
from clipkit.training.folder.resume import MACHINE, Found, best_evaluation, find, out_of_patience
from clipkit.training.folder.run_folder import RunFolder, append
from clipkit.training.folder.run_log import RunLog
from clipkit.training.folder.trackers import Trackers
from clipkit.training.inputs import TowerInputs
from clipkit.training.interpolation import interpolated, start_of
from clipkit.training.measures.measures import measurements_of, merged_results
from clipkit.training.micro_batch import memory_in_use
from clipkit.training.model import fingerprint, learns_batch_norm, micro_batch_size_of, model_of
from clipkit.training.objectives import objective_of
from clipkit.training.objectives.loss_sum import needs
from clipkit.training.objectives.teacher import teachers_of
from clipkit.training.optimizer import WarmupCosine, build_optimizer
from clipkit.training.run_data import read_data
from clipkit.training.run_guard import RunGuard
from clipkit.training.step import Abandoned, Step, out_of_memory
from clipkit.training.stop import StopRequest

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

    SIGINT (Ctrl-C), SIGTERM and SIGUSR1 stop the run after it has written a checkpoint.

    Args:
        recipe: a YAML file or a Recipe.
        overrides: `{"optim.lr": 1e-5}` and the like.
        resume: go on from the newest sound checkpoint of the run in `output`; begin where there is none; do nothing
            where the run is finished. What determines the result must not have changed; epochs, evaluation, logging,
            checkpoints, workers and where the data lies may.
        overwrite: replace the run in `output`.

    Returns:
        What `results.json` holds: the chosen weights' metrics on the validation pairs.

    Raises:
        UserError: the recipe, the data, the model or the output cannot be used; nothing was changed.
        TrainingError: the run could not go on; what was saved is whole.
        Interrupted: a signal stopped it (a KeyboardInterrupt, whatever the signal).

    Example:
        >>> train("recipes/finetune_clip.yaml", {"data.train": "mine.csv"})    # doctest: +SKIP
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe.from_yaml(recipe)
    recipe = recipe.override(overrides or {})
    with StopRequest() as stop, pixel_limit(recipe.data.max_pixels):
        run = Run(recipe, stop)
        try:
            return run.go(resume, overwrite)
        except RuntimeError as error:
            if str(error).startswith("DataLoader worker"):
                seen = run.worker_progress.last_seen(str(error)) if run.worker_progress is not None else ""
                reason = (
                    f"a loader worker died ({one_line(error)}){f' at {seen}' if seen else ''}; the system ends "
                    "processes when memory runs out: lower data.workers if it did"
                )
            elif out_of_memory(error):
                reason = f"out of memory ({one_line(error)}); set train.micro_batch_size to less than it found"
            else:
                raise
            failed = TrainingError(f"after step {run.step}: {reason}, then go on with --resume")
            failed.everywhere = False
            raise failed from None
        finally:
            run.folder.release()


class Run:
    """One run of a recipe by this process, alone or with others."""

    def __init__(self, recipe: Recipe, stop: StopRequest) -> None:
        self.recipe = recipe
        self.stop = stop
        self.folder = RunFolder(recipe.output)
        self.accelerator = accelerator_of(recipe.train.precision, recipe.train.timeout_minutes)
        self.processes = Processes(self.accelerator)
        self.log = RunLog(self.processes.is_main)
        self.keeper = Keeper(self.folder, recipe.checkpoint, recipe.metric)
        self.guard = RunGuard(recipe, self.folder, self.processes, self.log.say)
        self.trackers = Trackers(self.accelerator, recipe, self.folder.path)
        self.step = 0
        self.saved_at = 0
        self.seconds_before = 0.0
        self.settings: dict[str, Any] = {"processes": self.processes.count}
        self.failure: TrainingError | None = None
        self.worker_progress: WorkerProgress | None = None
        self.results: list[dict[str, Any]] = []
        self.ended = False

    def go(self, resume: bool, overwrite: bool) -> dict[str, Any]:
        """From the first check to the report."""
        self.started = time.monotonic()
        self.processes.on_main(lambda: self.folder.claim(resume, overwrite))
        self._prepare()
        found = self._find(resume)
        if found.finished:
            self.log.say(f"{self.folder.path}: was finished after step {self.steps}; there is nothing to do")
            results: dict[str, Any] = json.loads(self.folder.results.read_text(encoding="utf-8"))
            return results
        with self.log.kept():
            self._say_what_starts(found)
            state = read_state(checkpoint_of(self.folder.checkpoints, found.step)) if found.step else None
            inputs = self._inputs(state)
            self.bad_samples.check_known(inputs.bad)
            self.guard.look_before(self.model, self.data, self.steps, self.schedule.rising, resumed=state is not None)
            # Up to here, whatever was wrong, the folder is as it was.
            self._open(found, state)
            self.guard.begin(
                self.objective, self.steps, self.schedule.rising, self.largest_scale, resumed=state is not None
            )
            self.processes.on_main(self.trackers.start)
            self._take_in_bad(inputs)
            self._loop(inputs)
            results = self._finish()
            self.trackers.end()
            return results

    def _prepare(self) -> None:
        recipe = self.recipe
        self.data = data = read_data(recipe, self.processes)
        self.feed, validation = data.train, data.validation
        self.pairs = self.feed.pairs
        self.bad_samples = BadSamples(self.feed, data.max_bad, self.folder, self.processes)
        self.sampler = self.feed.sampler(recipe.data.captions, recipe.train.batch_size, recipe.train.seed)
        self.steps = recipe.train.epochs * self.sampler.steps_per_epoch
        self.schedule = WarmupCosine(recipe.optim.lr, recipe.optim.warmup, self.steps)
        torch.manual_seed(recipe.train.seed)  # new parts of a model are the same on every process
        self.model = model_of(recipe).to(self.accelerator.device)
        self.largest_scale = max(_LARGEST_LOGIT_SCALE, self.model.logit_scale.item())
        self.layout = layout_of(self.model, recipe.model)
        self.settings["trained_on"] = self.feed.counts
        self.start = start_of(self.model) if recipe.eval.interpolate else {}
        self.optimizer = self.accelerator.prepare(build_optimizer(self.model, recipe.optim))
        self.learned = Learned(self.model, self.optimizer.optimizer, recipe.train.ema)
        captions = "captions" in recipe.objective
        wrong = captions and needs(recipe.loss, "negative_text_features")
        teachers = [term.teacher for term in recipe.loss.terms if term.teacher is not None and captions]
        self.teachers = teachers_of(teachers, self.pairs, self.processes)
        self.objective = objective_of(recipe, self.model, self.pairs, self.teachers)
        self.identity = {
            "the images or captions of data.train": self.feed.fingerprint,
            "the weights of data.train": [own.weight for own in recipe.data.sources],
            "the images or captions of data.validation": validation.fingerprint if validation else None,
            "the frozen weights of the model": fingerprint(self.model),
            "the teacher": [teacher.fingerprint for teacher in self.teachers.values()],
            "the wrong captions": _hash_of(data.wrong_captions if wrong else []),
            "the paraphrases": [_hash_of(own.paraphrases or []) for own in (self.pairs, validation) if own is not None],
            "the images of data.labelled": [own.fingerprint for own in data.labelled],
            "the processes and workers that read the stream": (
                [self.processes.count, recipe.data.workers] if self.feed.depends_on_workers else None
            ),
            "versions": versions(),
            "processes": self.processes.count,
            "device": f"{self.accelerator.device.type}, {self.accelerator.mixed_precision.replace('no', 'fp32')}",
        }

    def _find(self, resume: bool) -> Found:
        """What the first process finds to go on from, on all of them."""
        found = Found(0, [])

        def look() -> None:
            nonlocal found
            found = find(self.folder, self.recipe, self.steps, self.identity)

        if resume:
            self.processes.on_main(look)
        step, finished = self.processes.of_main(found.step), self.processes.of_main(found.finished)
        return Found(step, found.notes, bool(finished))

    def _open(self, found: Found, state: dict[str, Any] | None) -> None:
        """Make the folder what it was at the checkpoint, or empty, and the run what it was then."""
        checkpoints = self.folder.checkpoints
        if state is not None:
            self.learned.load(checkpoint_of(checkpoints, found.step))
            self.step = self.saved_at = found.step
            self.seconds_before = state["seconds"]
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])

        def put_back() -> None:
            with self.folder.writing():
                if state is None:
                    self.folder.clear()
                else:
                    remove_leftovers(checkpoints)
                    for later in checkpoint_steps(checkpoints):
                        if later > found.step:
                            remove_checkpoint(checkpoint_of(checkpoints, later))
                    self.folder.cut(state["logs"], found.step)
                write_whole(self.folder.recipe, self.recipe.to_yaml())
                self.log.write_to(self.folder.log)

        self.processes.on_main(put_back)

    def _found_size(self, state: dict[str, Any] | None) -> int | None:
        """The micro-batch that the run had found on these processes."""
        if state is None or any(state["identity"][part] != self.identity[part] for part in MACHINE):
            return None
        same = state["recipe"]["train"]["micro_batch_size"] == self.recipe.train.micro_batch_size
        return int(state["micro_batch_size"]) if same else None

    def _say_what_starts(self, found: Found) -> None:
        pairs, recipe, model = self.pairs, self.recipe, self.model
        learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
        count, kind = self.processes.count, self.accelerator.device.type
        joined = f" joined by {torch.distributed.get_backend()}" if count > 1 else ""
        self.log.say(
            f"{count} process{'es' * (count > 1)} on {kind}{joined}, "
            f"{self.accelerator.mixed_precision.replace('no', 'fp32')}; {model.name}: "
            f"{learning / 1e6:.2f} M of {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters learn"
        )
        self.log.say(
            f"{pairs.name}: {self.feed.description}; "
            f"{recipe.train.epochs} epochs of {self.sampler.steps_per_epoch} steps of {recipe.train.batch_size} pairs"
        )
        if pairs.found:
            self.log.say(f"columns: {', '.join(f'{role} from {column}' for role, column in pairs.found.items())}")
        for note in (*self.data.notes, *found.notes):
            self.log.say(note)
        if found.step:
            self.log.say(f"goes on after step {found.step}")

    def _inputs(self, state: dict[str, Any] | None) -> TowerInputs:
        """Everything that a step needs; frozen trunks run here."""
        recipe = self.recipe
        inputs = TowerInputs(
            self.model,
            self.feed,
            self.processes,
            self.objective.encoded,
            augmented=bool(recipe.data.augmentation),
            seed=recipe.train.seed,
            replacement=self.sampler.replacement,
            bad=self.data.missing,
        )
        self.worker_progress = inputs.worker_progress
        if inputs.stores:
            kinds = {"image_features": "images", "text_features": "captions"}
            stored = [kind for name, kind in kinds.items() if name in inputs.stores]
            self.log.say(f"frozen trunks ran once over all {' and '.join(stored)}")
        self.measurements = list(
            measurements_of(recipe, self.model, self.data.validation, self.data.labelled, self.processes)
        )
        self.backward = Step(
            self.model,
            inputs.encoders,
            self.objective.value,
            self.processes,
            self.accelerator,
            recipe.train.batch_size,
            micro_batch_size_of(recipe, self.model, inputs, self.processes, self.accelerator, self._found_size(state)),
            recipe.train.seed,
            cut=not learns_batch_norm(self.model, recipe.model),
            asked_to_stop=lambda: self.stop.asked is not None,
            say=self.log.say,
            look=lambda gathered: self.guard.look(gathered, self.objective, self._is_logged(self.step + 1)),
        )
        self.log.say(f"micro-batches of {self.backward.micro_batch_size} pairs on each process")
        return inputs

    def _is_logged(self, step: int) -> bool:
        return step % self.recipe.train.log_every == 0 or step == self.steps

    def _take_in_bad(self, inputs: TowerInputs) -> None:
        """What is known to be bad before the first step."""
        self.bad_samples.go_on()
        if self.bad_samples.unknown(inputs.bad):
            self.bad_samples.add(inputs.bad, self.step)
        if inputs.bad:
            first = self.pairs.images[min(inputs.bad)]
            self.log.say(f"{len(inputs.bad)} images cannot be had, as {first}; other pairs stand in for them")

    def _loop(self, inputs: TowerInputs) -> None:
        recipe = self.recipe
        rows = self.processes.share(recipe.train.batch_size)
        batches = inputs.batches(self.sampler.slices(self.step, self.steps, rows), recipe.data.workers)
        bar = tqdm(
            total=self.steps * recipe.train.batch_size,
            initial=self.step * recipe.train.batch_size,
            unit=" pairs",
            unit_scale=True,
            # None: shown on a terminal only.
            disable=None if self.processes.is_main else True,
        )
        with closing(batches), bar, self.stop.deferred():
            if self._stage_ends():  # the checkpoint was written before it
                self._evaluate()
            waited_from = time.perf_counter()
            for batch in batches:
                began = time.perf_counter()
                row = self._step(batch)
                bar.update(recipe.train.batch_size)
                bar.set_postfix_str(f"loss {row['loss']:.3f}")
                self._log(row, waited=began - waited_from, took=time.perf_counter() - began)
                self._after_step(row, batch.bad)
                if self.ended:
                    break
                waited_from = time.perf_counter()

    def _step(self, batch: Batch) -> dict[str, Any]:
        recipe, lr = self.recipe, self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # A tower that learns BatchNorm's statistics learns them in the forward pass, of a step that fails too.
        before = {} if self.backward.cut else {name: b.clone() for name, b in self.model.named_buffers()}
        try:
            loss = self.backward(batch, self.step)
        except Abandoned:
            self._stop(self.processes.largest(int(self.stop.asked or 0)))
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        norm = self.accelerator.clip_grad_norm_(parameters, recipe.optim.clip or math.inf)
        # With fp16 a gradient that overflows is the scaler's business, which skips the step and scales less.
        if not loss.isfinite() or (self.accelerator.scaler is None and not norm.isfinite()):
            for name, buffer in self.model.named_buffers():
                buffer.copy_(before.get(name, buffer))
            self._stop_at_last_good(batch, loss.item(), float(norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        if "captions" not in recipe.objective or not needs(
            recipe.loss, "bias"
        ):  # SigLIP's scale may rise above CLIP's largest
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=self.largest_scale)
        self.step += 1
        if self.learned.average is not None:
            self.learned.average.update(self.step)
        return {
            "step": self.step,
            "epoch": round(self.step / self.sampler.steps_per_epoch, 4),
            "seen": self.step * recipe.train.batch_size,
            "loss": loss.item(),
            "lr": lr,
            **({"scale": self.model.logit_scale.exp().item()} if "captions" in recipe.objective else {}),
            **({"bias": self.model.logit_bias.item()} if self.model.logit_bias is not None else {}),
            "grad_norm": float(norm),
            **self.guard.statistics,
        }

    def _log(self, row: dict[str, Any], waited: float, took: float) -> None:
        if not self.processes.is_main or not self._is_logged(self.step):
            return
        memory = memory_in_use()
        speed = {
            "step": self.step,
            "pairs_per_second": round(self.recipe.train.batch_size / (took + waited), 2),
            "step_seconds": round(took, 4),
            "data_wait_seconds": round(waited, 4),
            "memory_bytes": memory,
        }
        try:
            with self.folder.writing():
                append(self.folder.metrics, row)
                append(self.folder.speed, speed)
                self.guard.guards.step(row, speed, memory)
            self.trackers.log("train", row, self.step)
            self.trackers.log("speed", speed, self.step)
        except TrainingError as error:
            self.failure = error  # raised where the other processes learn of it

    def _after_step(self, row: dict[str, Any], bad: Mapping[int, str]) -> None:
        ends = self._stage_ends()
        failed, old, met = self.processes.any(
            self.failure is not None, self.processes.is_main and self.keeper.old(), self.bad_samples.unknown(bad)
        )
        if failed:
            raise self.failure or TrainingError("the first process cannot write")
        if met:
            self.bad_samples.add(bad, self.step)
            if len(self.bad_samples.images) > self.bad_samples.most:
                self._save_checkpoint()
                self.bad_samples.check(self.step)
        if asked := self.processes.largest(int(self.stop.asked or 0)):
            self._stop(asked)
        if (ends and self.measurements) or old or self.step == self.steps or self.keeper.due(self.step):
            self._save_checkpoint()
        if ends:
            figures = self._evaluate()
            self.log.say(
                f"epoch {self.step // self.sampler.steps_per_epoch}/{self.recipe.train.epochs}, step {self.step}: "
                f"loss {row['loss']:.4f}{self.guard.said_of(figures, self.step)}"
            )
            self.ended = self.step < self.steps and bool(
                self.processes.of_main(int(self.processes.is_main and out_of_patience(self.folder, self.recipe)))
            )
            if self.ended:
                self.log.say(f"{self.recipe.eval.patience} evaluations were no better than the best one: the run ends")

    def _stage_ends(self) -> bool:
        """Whether it is time to look at how far the run has come."""
        epoch, within = divmod(self.step, self.sampler.steps_per_epoch)
        return self.step > 0 and within == 0 and (self.step == self.steps or epoch % self.recipe.eval.every_epochs == 0)

    def _save_checkpoint(self) -> None:
        if self.saved_at == self.step:
            return
        scaler = self.accelerator.scaler
        state = {
            "seconds": round(self._seconds(), 2),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "micro_batch_size": self.backward.micro_batch_size,
            "recipe": self.recipe.model_dump(mode="json"),
            "identity": self.identity,
        }
        self.processes.on_main(lambda: self.keeper.write(self.step, self.learned, state))
        self.saved_at = self.step

    def _stop(self, asked: int) -> NoReturn:
        self._save_checkpoint()
        where = f" after step {self.step}, of which there is a checkpoint" if self.step else " before the first step"
        raise self.stop.interrupted(where, asked)

    def _stop_at_last_good(self, batch: Batch, loss: float, norm: float) -> None:
        """Nothing was updated yet: keep the state, say which images the step had, and stop."""
        rows = batch.image_ids[:, None].to(self.accelerator.device)
        images = self.processes.gather(rows, self.recipe.train.batch_size)[:, 0].tolist()
        names = [Path(self.feed.image_name(image)).name for image in images]
        self._save_checkpoint()
        self.guard.not_finite(self.step + 1, loss, norm)
        self.log.say(f"images of step {self.step + 1}: {' '.join(names)}")
        raise TrainingError(
            f"step {self.step + 1}: the loss is {loss:.4g} and the gradient's norm {norm:.4g}; the weights after step "
            f"{self.step} are in {self.folder.checkpoints}, its images ({names[0]}, …) in {self.folder.log}; try a "
            "lower optim.lr, optim.clip, or train.precision: fp32"
        )

    def _evaluate(self) -> dict[str, float]:
        """Score the validation pairs, and keep these weights where they are the best so far."""
        if not self.measurements:
            return {}
        with self.learned.chosen():
            with self.stop.deferred(False):  # it may take long, and its checkpoint is written
                figures = self._figures()

            def keep() -> None:
                row = {"step": self.step, **figures}
                with self.folder.writing():
                    append(self.folder.evaluations, row)
                    self.guard.guards.evaluation(row)
                self.trackers.log("eval", figures, self.step)
                with self.folder.writing():
                    best = best_evaluation(self.folder, self.recipe.metric)
                    if best is not None and best["step"] == self.step:
                        self.folder.replace_model(self._save_model)
                    self.keeper.prune()

            self.processes.on_main(keep)
        return figures

    def _figures(self) -> dict[str, float]:
        """Everything that is measured, of the weights as they are."""
        figures = {name: value for own in self.measurements for name, value in own.figures().items()}
        return figures | self.guard.retained()

    def _save_model(self, folder: Path) -> None:
        """Without the heads that the recipe drops."""
        heads = self.model.view_heads
        kept = {"image": self.recipe.image_views, "text": self.recipe.text_views}
        sides = [
            side for side, views in kept.items() if views is not None and views.head is not None and views.head.keep
        ]
        self.model.view_heads = nn.ModuleDict({side: heads[side] for side in sides})
        try:
            self.model.save(folder)
            card = model_card(self.layout, self.results, self.recipe.model_dump(mode="json"))
            (folder / "README.md").write_text(signed(card), encoding="utf-8")
        finally:
            self.model.view_heads = heads

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _finish(self) -> dict[str, Any]:
        best = best_evaluation(self.folder, self.recipe.metric) if self.processes.is_main else None
        best_step = self.processes.of_main(best["step"] if best is not None else self.step)
        if best_step != self.step:
            self.learned.load_chosen(checkpoint_of(self.folder.checkpoints, best_step))
            return self._write_results(best)
        with self.learned.chosen():
            return self._write_results(best)

    def _interpolate(self) -> None:
        """Keep the best of the weights between those that the model came with and those that it has."""
        metric = str(self.recipe.metric)
        own = {} if self.guard.retention is None else {"retention": self.guard.retention.metric}
        curve = interpolated(self.model, self.start, self._figures, {"target": metric, **own})
        alpha = curve.chosen
        self.settings |= {"interpolation": curve.rows, "alpha": alpha}
        self.log.say(f"between start (0) and end (1) the weights at alpha {alpha:g} are best and kept")

    def _write_results(self, best: dict[str, Any] | None) -> dict[str, Any]:
        """Of the weights that the model has now, which are kept."""
        name, metric = str(self.folder.path), self.recipe.metric
        if self.start:
            self._interpolate()
        self.settings |= self.guard.settings()
        results = merged_results(self.measurements, name)
        results["settings"]["best"] = best and {"step": best["step"], "metric": metric, "value": best[str(metric)]}
        results["settings"] |= {
            "steps": self.step,
            "loss_at_chance": self.objective.chance,
            "micro_batch_size": self.backward.micro_batch_size,
            **self.settings,
        }
        results["seconds"] = round(self._seconds(), 2)
        results["findings"] = [finding.to_dict() for finding in self.guard.guards.found]
        if self.processes.is_main and (sheet := augmented_sheet(self.recipe, self.pairs)) is not None:
            results["augmented"] = sheet
        self.results = [results]

        def write() -> None:
            with self.folder.writing():
                self.folder.replace_model(self._save_model)
                self.folder.report.unlink(missing_ok=True)  # with both there, the run is finished
                write_whole(self.folder.results, to_json(results))
                write_whole(self.folder.report, run_report(self.folder.path))

        self.processes.on_main(write)
        self.log.say(f"done in {results['seconds']:.0f} s: {self.folder.model}, {self.folder.report}")
        return results


def _hash_of(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
