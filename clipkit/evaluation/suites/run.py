"""`run_suite`: every data set with every model, as far as it can be reached, and where it stopped."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipkit.embedding.features import Cache
from clipkit.errors import TrainingError, UnreachedError, UserError, one_line
from clipkit.evaluation.result import to_json, versions
from clipkit.evaluation.suites.entries import DataSet, Suite
from clipkit.evaluation.suites.robustness import robustness, robustness_means
from clipkit.evaluation.suites.sources import Opened, open_data
from clipkit.evaluation.tasks.compositional import compositional
from clipkit.evaluation.tasks.probe import probe
from clipkit.evaluation.tasks.retrieval import retrieval
from clipkit.evaluation.tasks.zeroshot import zeroshot
from clipkit.files import write_whole
from clipkit.models import DualEncoder, load
from clipkit.models.absent import check_present, is_absent
from clipkit.models.fingerprint import tower_fingerprint

if TYPE_CHECKING:
    from clipkit.processes import Processes

_TROUBLE = (UserError, TrainingError, OSError, ValueError, RuntimeError)


@dataclass
class SuiteResult:
    """What came of a suite."""

    suite: Suite
    models: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Of each data set and model that was measured: dataset, title, task, metric, model, value, low, high, chance, and
    the file of its result."""
    unreached: dict[str, str] = field(default_factory=dict)
    """Data sets that are not here: why."""
    failed: dict[str, str] = field(default_factory=dict)
    """`DATASET`, `DATASET with MODEL` or `MODEL`: why."""
    robustness: list[dict[str, Any]] = field(default_factory=list)
    robustness_means: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in results.json."""
        return {
            "suite": self.suite.name,
            "title": self.suite.title,
            "models": self.models,
            "rows": self.rows,
            "published": {own.name: [one.model_dump() for one in own.published] for own in self.suite.datasets},
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
    processes: "Processes | None" = None,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> SuiteResult:
    """Measure what can be reached; what was measured before, with the same model and data, is kept.

    Args:
        suite: what `read_suite` gives.
        models: names as `clipkit.load` takes them.
        out: a folder for a result file each, `results.json` and what else is made of it.
        cache: of features, shared by the data sets: None is the user's own folder, False none.
        processes: share each data set; all get the result, the first writes.
        say: where a line a data set goes.
        progress: show bars on the terminal.

    Raises:
        UserError: the only model cannot be loaded or lacks a tower, or one is named twice.
        OSError: the folder cannot be written to.
    """
    names = list(models)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{twice[0]}: is given as a model twice; give each once")
    found = SuiteResult(suite, names)
    is_main = processes is None or processes.is_main
    if is_main:
        out.mkdir(parents=True, exist_ok=True)
    # What one process alone meets would leave the others waiting, so that with several it ends the run.
    caught = _TROUBLE if processes is None or processes.count == 1 else UserError
    opened: dict[str, Opened] = {}
    for name in names:
        try:
            model = load(name)
            if all(entry.task != "probe" for entry in suite.datasets):  # which needs one tower alone
                check_present(name, image=model.image, text=model.text)
        except UserError as error:
            if len(names) == 1:
                raise
            found.failed[name] = str(error)
            say(f"{name}: failed: {error}")
            continue
        weights = _weights(model)
        for entry in suite.datasets:
            if entry.name in found.unreached or entry.name in found.failed:
                continue
            try:
                # Not all at once: a data set of the Hub is fetched when its turn has come.
                opened[entry.name] = opened.get(entry.name) or _opened(entry, processes)
            except UnreachedError as error:
                found.unreached[entry.name] = str(error)
                say(f"{entry.name}: not reached: {error}")
                continue
            except caught as error:
                found.failed[entry.name] = one_line(error)
                say(f"{entry.name}: failed: {one_line(error)}")
                continue
            file = out / f"{_slug(name)}--{entry.name}.json"
            key = _key(entry, weights, opened[entry.name])
            result = _kept(file, key, processes)
            before = result is not None
            if result is None:
                try:
                    result = _measured(model, entry, opened[entry.name], cache, processes, progress and is_main)
                except caught as error:
                    # One data set's trouble is not the others'.
                    found.failed[f"{entry.name} with {name}"] = one_line(error)
                    say(f"{entry.name} with {name}: failed: {one_line(error)}")
                    continue
                result["settings"]["suite"] = {"name": suite.name, "entry": entry.model_dump(mode="json"), "key": key}
                if is_main:
                    write_whole(file, to_json(result))
            say(f"{entry.name} with {name}: {_said(entry, result)}{' (measured before)' if before else ''}")
            found.rows.append(_row(entry, name, result, file))
    found.robustness = robustness(suite, found.rows, names)
    found.robustness_means = robustness_means(found.robustness)
    if is_main:
        write_whole(out / "results.json", json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n")
    return found


def _opened(entry: DataSet, processes: "Processes | None") -> Opened:
    """The data, which processes read one after the other, as they may share the folders it is fetched into.

    Raises:
        UserError: one of them cannot; on all.
    """
    if processes is None or processes.count == 1:
        return open_data(entry)
    opened: Opened | None = None
    failure: UserError | None = None
    for index in range(processes.count):
        if index == processes.index:
            try:
                opened = open_data(entry)
            except UserError as error:
                failure = error
        failures = [own for own in processes.gather_objects(failure) if own is not None]
        if failures:
            raise failures[0]
    assert opened is not None
    return opened


def _measured(
    model: DualEncoder, entry: DataSet, opened: Opened, cache: Cache, processes: Any, progress: bool
) -> dict[str, Any]:
    shared: dict[str, Any] = {"cache": cache, "processes": processes, "progress": progress}
    data: Any = opened.data
    match entry.task:
        case "retrieval":
            result: Any = retrieval(model, data, **shared)
        case "compositional":
            result = compositional(model, data, **shared)
        case "probe":
            assert opened.train is not None
            result = probe(model, opened.train, test=data, cache=cache, processes=processes)
        case "zeroshot":
            result = zeroshot(model, data, classes=opened.classes, templates=opened.templates, **shared)
    if entry.main_metric not in result["metrics"]:
        known = ", ".join(result["metrics"])
        raise UserError(f"{entry.name}: metric {entry.main_metric} is not measured; there are {known}")
    return dict(result)


def _weights(model: DualEncoder) -> str:
    """Which model it is, by what its towers and its scale do."""
    towers = [tower_fingerprint(tower) for tower in (model.image, model.text) if not is_absent(tower)]
    return "\0".join([*towers, float(model.logit_scale.detach()).hex()])


def _key(entry: DataSet, weights: str, opened: Opened) -> str:
    """Of what a result depends on: how it is measured, the model, the data."""
    settings = entry.model_dump(mode="json", exclude={"published", "title", "version_of"})
    return hashlib.sha256(f"{json.dumps(settings)}\0{weights}\0{opened.fingerprint}".encode()).hexdigest()


def _kept(file: Path, key: str, processes: "Processes | None") -> dict[str, Any] | None:
    """The result that the first process finds there, of the same model and data."""
    result: dict[str, Any] | None = None
    if processes is None or processes.is_main:
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            if result is None or result["settings"]["suite"]["key"] != key:
                result = None
        except (OSError, ValueError, KeyError, TypeError):
            result = None
    return result if processes is None else processes.gather_objects(result)[0]


def _row(entry: DataSet, model: str, result: dict[str, Any], file: Path) -> dict[str, Any]:
    figure = result["metrics"][entry.main_metric]
    return {
        "dataset": entry.name,
        "title": entry.title or entry.name,
        "task": entry.task,
        "metric": entry.main_metric,
        "model": model,
        **{name: figure.get(name) for name in ("value", "low", "high", "chance")},
        "seconds": result["seconds"],
        "file": file.name,
    }


def _said(entry: DataSet, result: dict[str, Any]) -> str:
    value = result["metrics"][entry.main_metric]["value"]
    return f"{entry.main_metric} {'–' if value is None else f'{value:.4f}'}"


def _slug(model: str) -> str:
    """A file's name for a model's, unlike any other's."""
    short = re.sub(r"[^\w.-]+", "_", model).strip("_")[-60:]
    return f"{short}-{hashlib.sha256(model.encode()).hexdigest()[:6]}"
