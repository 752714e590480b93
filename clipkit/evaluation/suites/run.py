"""Function `run_suite`: evaluate several models on all datasets of a suite."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clipkit.embedding.features import Cache, Features
from clipkit.errors import TrainingError, UnreachedError, UserError, one_line
from clipkit.evaluation.result import to_json, versions
from clipkit.evaluation.suites.cost import Cost
from clipkit.evaluation.suites.entries import DataSet, Suite
from clipkit.evaluation.suites.progress import Remaining
from clipkit.evaluation.suites.robustness import robustness, robustness_means
from clipkit.evaluation.suites.sources import fingerprint_of, open_data
from clipkit.evaluation.tasks.task import Options, TaskData, task_of
from clipkit.files import write_whole
from clipkit.models import DualEncoder, load
from clipkit.models.absent import check_present, is_absent
from clipkit.models.fingerprint import tower_fingerprint
from clipkit.overwriting import check_replaceable
from clipkit.processes import Processes
from clipkit.run_files import read_object

_ERRORS = (UserError, TrainingError, OSError, ValueError, RuntimeError)


@dataclass
class SuiteResult:
    """Results of a suite, and the reason for each missing result."""

    suite: Suite
    models: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One row per measured dataset and model: dataset, title, task, metric, model, counts of the data, value, low,
    high, chance, values of all metrics, hash of the data, share of captions that are truncated, seconds, and the file
    of the result."""
    unreached: dict[str, str] = field(default_factory=dict)
    """Reasons why datasets are not available, by dataset."""
    failed: dict[str, str] = field(default_factory=dict)
    """Reason for each failure, keyed by `DATASET`, `DATASET with MODEL` or `MODEL`."""
    mean: dict[str, float | None] = field(default_factory=dict)
    """Mean of the metrics in the table by model, if the suite asks for it; None: a dataset has no result."""
    robustness: list[dict[str, Any]] = field(default_factory=list)
    robustness_means: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, list[str]] = field(default_factory=dict)
    """Description of the work by model, as printed before it begins."""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of results.json."""
        return {
            "suite": self.suite.name,
            "title": self.suite.title,
            "models": self.models,
            "rows": self.rows,
            "mean": self.mean,
            "published": {entry.name: [one.model_dump() for one in entry.published] for entry in self.suite.datasets},
            "unreached": self.unreached,
            "failed": self.failed,
            "robustness": self.robustness,
            "robustness_means": self.robustness_means,
            "versions": versions(),
        }


def run_suite(
    suite: Suite,
    models: Sequence[str],
    out: Path,
    *,
    cache: Cache = None,
    processes: Processes | None = None,
    log: Callable[[str], None] = lambda line: None,
    note: Callable[[str], None] = lambda line: None,
    progress: bool = False,
    dry_run: bool = False,
) -> SuiteResult:
    """Evaluate all models on all available datasets of a suite.

    If `out` already contains a result for the same model, data and settings, the result is reused. All tasks share the
    features, so each image and each caption is encoded once per model.

    Args:
        suite: returned by `read_suite`.
        models: names of the models, in any form that `clipkit.load` accepts.
        out: folder for one result file per dataset and model, and for `results.json`.
        cache: folder in which features are cached. None: the user's cache folder. False: a temporary folder.
        processes: processes that share the encoding. All return the result; only the main process writes files.
        log: called with one line per dataset and model.
        note: called with lines about work and speed, before each model and after each dataset.
        progress: show progress bars on the terminal.
        dry_run: only measure the speed and describe the work. No files are written, except to the cache.

    Raises:
        UserError: a model is given twice, or the only model cannot be loaded or lacks a tower.
        OSError: the folder cannot be written to.
    """
    names = list(models)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{twice[0]}: the model was given twice; give each model once")
    processes = processes or Processes.alone()
    result = SuiteResult(suite, names)
    if processes.is_main and not dry_run:
        out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="clipkit-") as folder:
        options = Options(cache=folder if cache is False else cache, processes=processes, progress=progress)
        run = _Run(suite, out, processes, options, log, note, dry_run, result)
        for name in names:
            run.measure(name)
    if dry_run:
        return result
    if suite.mean:
        result.mean = {name: _mean(suite, result.rows, name) for name in names}
    result.robustness = robustness(suite, result.rows, names)
    result.robustness_means = robustness_means(result.robustness)
    if processes.is_main:
        write_whole(out / "results.json", json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n")
    return result


def _mean(suite: Suite, rows: Sequence[dict[str, Any]], model: str) -> float | None:
    values = [row["value"] for row in rows if row["model"] == model and row["value"] is not None]
    return sum(values) / len(values) if len(values) == len(suite.datasets) else None


@dataclass
class _Run:
    """State of one call of `run_suite`.

    Args:
        options: keyword arguments for every evaluation function.
        log: called with one line per dataset and model.
        note: called with lines about work and speed.
        dry_run: only measure the speed and describe the work.
        opened: data of the open datasets, by name.
        fingerprints: fingerprints of the data, by name of the dataset.
    """

    suite: Suite
    out: Path
    processes: Processes
    options: Options
    log: Callable[[str], None]
    note: Callable[[str], None]
    dry_run: bool
    result: SuiteResult
    opened: dict[str, TaskData] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)

    @property
    def _caught(self) -> tuple[type[Exception], ...]:
        # An error that only one of several processes raises would leave the others waiting, so it ends the suite.
        return _ERRORS if self.processes.count == 1 else (UserError,)

    def measure(self, name: str) -> None:
        """Evaluate one model on all datasets."""
        try:
            model = load(name)
            if all(task_of(entry.task).texts is not None for entry in self.suite.datasets):
                check_present(name, image=model.image, text=model.text)
        except UserError as error:
            if len(self.result.models) == 1:
                raise
            self._fail(name, error)
            return
        weights = _weights(model)
        for entry in self.suite.datasets:
            if not entry.is_downloaded_when_read:
                self._open(entry)
        remaining = Remaining(shown=bool(self.options["progress"]) and self.processes.is_main)
        cost = self._cost(model, name, weights, remaining)
        options = Options(**{**self.options, "progress": remaining})
        for position, entry in enumerate(self.suite.datasets if not self.dry_run else ()):
            opened = self._open(entry)
            if opened is not None:
                remaining.begin(cost.works[position].new, cost.after(position + 1))
                self._measure_dataset(model, name, weights, entry, opened, options)
                if summary := remaining.summary():
                    self.note(f"{entry.name} with {name}: {summary}")

    def _cost(self, model: DualEncoder, name: str, weights: str, remaining: Remaining) -> Cost:
        """Compute, report and return the cost of evaluating a model on the suite.

        `weights` identifies the model (see `_weights`). `remaining` receives the measured speed.
        """
        features = Features(model, cache=self.options["cache"], processes=self.processes)
        kept = {
            entry.name
            for entry in self.suite.datasets
            if entry.name in self.opened and self._kept(self._file(name, entry), self._key(entry, weights)) is not None
        }
        cost = Cost(self.suite, self.opened, kept, {*self.result.unreached, *self.result.failed}, features)
        cost.measure(remaining)
        self.result.cost[name] = cost.lines(remaining)
        for line in self.result.cost[name]:
            self.note(line)
        return cost

    def _file(self, name: str, entry: DataSet) -> Path:
        return self.out / f"{_file_name(name)}--{entry.name}.json"

    def _key(self, entry: DataSet, weights: str) -> str:
        if entry.name not in self.fingerprints:
            self.fingerprints[entry.name] = fingerprint_of(self.opened[entry.name])
        return _key(entry, weights, self.fingerprints[entry.name])

    def _open(self, entry: DataSet) -> TaskData | None:
        """Return the data of a dataset. If it is missing or invalid, record the reason and return None."""
        if entry.name in self.opened:
            return self.opened[entry.name]
        if entry.name in self.result.unreached or entry.name in self.result.failed:
            return None
        try:
            # Open one dataset at a time, so that a dataset on the Hub is downloaded only when it is needed.
            self.opened[entry.name] = _open_in_turn(entry, self.processes)
        except UnreachedError as error:
            self.result.unreached[entry.name] = str(error)
            self.log(f"{entry.name}: not available: {error}")
            return None
        except self._caught as error:
            self._fail(entry.name, error)
            return None
        for finding in getattr(self.opened[entry.name].data, "findings", ()):
            self.log(f"{entry.name}: {finding.line()}")
        return self.opened[entry.name]

    def _measure_dataset(
        self, model: DualEncoder, name: str, weights: str, entry: DataSet, opened: TaskData, options: Options
    ) -> None:
        file, key = self._file(name, entry), self._key(entry, weights)
        result = self._kept(file, key)
        kept = result is not None
        if result is None:
            try:
                self.processes.on_main(lambda: check_replaceable(file))
                result = dict(task_of(entry.task).run(model, opened, options))
                _check_metric(entry, result)
            except self._caught as error:
                self._fail(f"{entry.name} with {name}", error)
                return
            entry_values = entry.model_dump(mode="json")
            result["settings"]["suite"] = {"name": self.suite.name, "entry": entry_values, "key": key}
            if self.processes.is_main:
                write_whole(file, to_json(result))
        value = result["metrics"][entry.main_metric]["value"]
        shown = "–" if value is None else f"{value:.4f}"
        self.log(f"{entry.name} with {name}: {entry.main_metric} {shown}{' (measured before)' if kept else ''}")
        self.result.rows.append(_row(entry, name, result, file))

    def _kept(self, file: Path, key: str) -> dict[str, Any] | None:
        """Return the result in the file if its key is equal to the given key; otherwise None.

        The key is a hash of the dataset, the model and the settings (see `_key`). Only the main process reads the file,
        and all processes return the same result.
        """
        result = read_object(file) if self.processes.is_main else {}
        try:
            kept = result if result["settings"]["suite"]["key"] == key else None
        except (KeyError, TypeError):
            kept = None
        return self.processes.gather_objects(kept)[0]

    def _fail(self, name: str, error: Exception) -> None:
        message = str(error) if isinstance(error, UserError) else one_line(error)
        self.result.failed[name] = message
        self.log(f"{name}: failed: {message}")


def _open_in_turn(entry: DataSet, processes: Processes) -> TaskData:
    """Read the data of a dataset in one process after another, because processes may share the download folder.

    Raises:
        UserError: one of the processes cannot read the data. All processes raise the same error.
    """
    opened: TaskData | None = None
    failure: UserError | None = None
    for index in range(processes.count):
        if index == processes.index:
            try:
                opened = open_data(entry)
            except UserError as error:
                failure = error
        failures = [one for one in processes.gather_objects(failure) if one is not None]
        if failures:
            raise failures[0]
    assert opened is not None
    return opened


def _check_metric(entry: DataSet, result: dict[str, Any]) -> None:
    if entry.main_metric not in result["metrics"]:
        measured = ", ".join(result["metrics"])
        raise UserError(f"{entry.name}: the result has no metric {entry.main_metric}; set metric to one of {measured}")


def _weights(model: DualEncoder) -> str:
    """Return a text that identifies a model: the fingerprints of its towers, and its logit scale."""
    towers = [tower_fingerprint(tower) for tower in (model.image, model.text) if not is_absent(tower)]
    return "\0".join([*towers, float(model.logit_scale.detach()).hex()])


def _key(entry: DataSet, weights: str, fingerprint: str) -> str:
    """Return a hash of everything that determines a result: the dataset's settings, the model and the data."""
    settings = entry.model_dump(mode="json", exclude={"published", "title", "version_of", "license", "checked"})
    return hashlib.sha256(f"{json.dumps(settings)}\0{weights}\0{fingerprint}".encode()).hexdigest()


def _row(entry: DataSet, model: str, result: dict[str, Any], file: Path) -> dict[str, Any]:
    figure = result["metrics"][entry.main_metric]
    return {
        "dataset": entry.name,
        "title": entry.title or entry.name,
        "task": entry.task,
        "metric": entry.main_metric,
        "model": model,
        **{
            kind: result["data"][kind]
            for kind in ("images", "captions", "instances", "queries")
            if kind in result["data"]
        },
        **{name: figure.get(name) for name in ("value", "low", "high", "chance")},
        "metrics": {name: one["value"] for name, one in result["metrics"].items()},
        "data_sha256": result["data"]["sha256"],
        "captions_cut": result["settings"].get("captions_cut"),
        "seconds": result["seconds"],
        "file": file.name,
    }


def _file_name(model: str) -> str:
    """Return a file name for the result of a model. Different model names give different file names."""
    short = re.sub(r"[^\w.-]+", "_", model).strip("_")[-60:]
    return f"{short}-{hashlib.sha256(model.encode()).hexdigest()[:6]}"
