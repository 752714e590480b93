"""Suite files: datasets with their tasks. A suite defines datasets or names those of other files."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from clipkit.closest import closest
from clipkit.errors import DataError
from clipkit.files import is_file
from clipkit.parsing import read_yaml
from clipkit.recipe.problems import first_problem
from clipkit.recipe.section import Section
from clipkit.suite_files import suites_folder
from clipkit.tasks import TASKS

_HUB_SOURCE = re.compile(r"wds:[\w.-]+/[\w.-]+(@[\w./-]+)?(\?group=\w+)?")
_SUGGESTED = 3  # number of names to suggest for an unknown name


class Published(Section):
    """A published metric value, for comparison."""

    model: str
    """Name of the model, if possible as `clipkit.load` accepts it, e.g. open_clip:ViT-B-32/openai."""
    metric: str
    value: float = Field(ge=0, le=1)
    source: str
    """Source of the published value, e.g. a paper."""


class Corruption(Section):
    """A corruption that is applied to each image when it is read."""

    name: Literal["blur", "noise", "jpeg", "brightness"]
    level: int = Field(ge=1, le=5)


class DataSet(Section):
    """A dataset and the task that is evaluated on it."""

    name: str = Field(pattern=r"^[\w.-]+$")
    title: str = ""
    task: str
    """A key of `clipkit.tasks.TASKS`."""
    source: str
    """Data in any form that other commands accept, or `twemoji:groups` or `twemoji:LANGUAGE` (built from pip packages),
    or `wds:ORG/NAME[@REVISION]` (a dataset on the Hub in CLIP_benchmark's layout).
    """
    split: str = "test"
    """Split of a `wds:` source."""
    train: str | None = None
    """Training data of a probe; for a `wds:` source the name of a split."""
    classes: str | list[str] | dict[str, str | list[str]] | None = None
    """Class names for prompts: a file, or the names themselves. Default: the class names of the data."""
    templates: str | list[str] | None = None
    """Prompts: the name of a built-in set, a file, or the prompts themselves. Default: the prompts of the data."""
    ignored_groups: list[str] = Field(default=[])
    """Groups of images (`source: …?group=COLUMN`) that do not count as the worst group."""
    class_count: PositiveInt | None = None
    images: PositiveInt | None = None
    captions: PositiveInt | None = None
    """Expected numbers of images and captions; data with other numbers is refused."""
    metric: str | None = None
    """Metric in the table. Default: the main metric of the task (acc1, mean_recall, acc or lp_acc1)."""
    corruption: Corruption | None = None
    version_of: str | None = None
    """The original dataset if this is a shifted version of it; ignored unless a suite contains both."""
    published: list[Published] = Field(default=[])
    license: str = ""
    """License of the data; "unknown" if no document was found."""
    checked: str = ""
    """Documents in which source, license and numbers were looked up, and what was not verified."""

    @property
    def main_metric(self) -> str:
        """Metric that the table of a suite shows."""
        return self.metric or TASKS[self.task].main_metric

    @property
    def is_downloaded_when_read(self) -> bool:
        """True if reading the source may download it."""
        return bool(_HUB_SOURCE.fullmatch(self.source)) or self.source.startswith(("hf:", "http://", "https://"))

    @field_validator("task")
    @classmethod
    def _task_exists(cls, task: str) -> str:
        if task not in TASKS:
            raise ValueError(f"{task!r} is not a task; {closest(task, TASKS)}")
        return task

    @model_validator(mode="after")
    def _fits_its_task(self) -> Self:
        learns = TASKS[self.task].learns
        if self.train is not None and not learns:
            raise ValueError(f"train does not apply to the task {self.task} of {self.name}; remove train")
        if learns and self.train is None:
            raise ValueError(f"{self.name} has the task {self.task}, which needs training data; add train: SOURCE")
        if self.source.startswith("wds:") and not _HUB_SOURCE.fullmatch(self.source):
            raise ValueError(f"{self.source} is not a dataset on the Hub; write wds:ORG/NAME or wds:ORG/NAME@REVISION")
        return self


class Suite(Section):
    """Several datasets that are evaluated together."""

    name: str = Field(pattern=r"^[\w.-]+$")
    title: str = ""
    datasets: list[DataSet] = Field(min_length=1)
    mean: bool = False
    """Add the mean of the metrics in the table, for models with a result on every dataset."""
    baseline: str | list[str] = Field(default=[])
    """Names of the baseline models, from which effective robustness is computed. Default: the first evaluated model."""

    @property
    def baselines(self) -> list[str]:
        """Names of the baseline models as a list."""
        return [self.baseline] if isinstance(self.baseline, str) else self.baseline

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        names = [entry.name for entry in self.datasets]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"datasets contains {twice[0]} twice; give each dataset a different name")
        for entry in self.datasets:
            if entry.version_of is not None and entry.version_of not in names:
                raise ValueError(
                    f"{entry.name} is a version_of {entry.version_of}, which is not a dataset of the suite; "
                    "add that dataset, or remove version_of"
                )
        return self


Kind = TypeVar("Kind", DataSet, Suite)


def read_suite(name: str) -> Suite:
    """Return a suite; a single dataset is returned as a suite of one.

    Args:
        name: name of a built-in suite or dataset, or a YAML file.

    Raises:
        DataError: the name is unknown, or the file is invalid; the message names the file and the key.

    Example:
        >>> read_suite("offline").name
        'offline'
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        values = _values(path)
    elif name in _built_in():
        path, values = _built_in()[name]
    else:
        raise DataError(
            f"{name}: is not a built-in suite or dataset; {closest(name, _built_in(), _SUGGESTED)} (your own "
            "suite: give a .yaml file)"
        )
    if "datasets" not in values:
        entry = _checked(DataSet, {key: value for key, value in values.items() if key != "version_of"}, path)
        return Suite(name=entry.name, title=entry.title, datasets=[entry])
    datasets = values["datasets"]
    if isinstance(datasets, list):
        datasets = _with_named(datasets, path)
    return _checked(Suite, {**values, "datasets": datasets}, path)


@cache
def _built_in() -> dict[str, tuple[Path, dict[str, Any]]]:
    """Return the file and the content of each built-in suite and dataset, by name.

    The name is the file name without `.yaml`, or the key `name` of a dataset that is defined in a suite's file.
    """
    found = {file.stem: (file, _values(file)) for file in sorted(suites_folder().glob("*.yaml"))}
    for file, values in [*found.values()]:
        for entry in values.get("datasets", []):
            if isinstance(entry, dict):
                found.setdefault(entry["name"], (file, entry))
    return found


def _with_named(datasets: list[Any], path: Path) -> list[Any]:
    """Return the datasets of a suite; a name is replaced by the definition of the built-in dataset.

    Its key `version_of` is dropped if the suite does not contain the dataset that it is a version of.
    """
    entries = [_named(given, path) if isinstance(given, str) else given for given in datasets]
    names = {entry.get("name") for entry in entries if isinstance(entry, dict)}
    return [
        {key: value for key, value in entry.items() if key != "version_of"}
        if isinstance(given, str) and entry.get("version_of") not in names
        else entry
        for given, entry in zip(datasets, entries, strict=True)
    ]


def _named(name: str, path: Path) -> dict[str, Any]:
    """Return the content of a dataset that is in a file beside the suite's file, or built in."""
    beside = path.parent / f"{name}.yaml"
    if is_file(beside):
        return _values(beside)
    if name in _built_in():
        return _built_in()[name][1]
    known = [*(file.stem for file in path.parent.glob("*.yaml")), *_built_in()]
    raise DataError(
        f"{path}: {name} is not a built-in dataset, and {beside.name} is not in this folder; "
        f"{closest(name, known, _SUGGESTED)}"
    )


def _values(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise DataError(f"{path}: file not found; give the name of a suite or a YAML file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is not valid YAML ({' '.join(str(error).split())}); fix the file") from None
    if not isinstance(values, dict):
        raise DataError(
            f"{path}: is not a mapping; write the keys name and datasets for a suite, or name, task and source for a "
            "dataset"
        )
    return values


def _checked(kind: type[Kind], values: Mapping[str, Any], path: Path) -> Kind:
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(kind, error)}") from None
