"""Suite files: YAML files that define the datasets of a suite, with their tasks."""

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
    """A published value of a metric, e.g. from a paper."""

    model: str
    """Name of the model, if possible as `clipkit.load` accepts it, e.g. open_clip:ViT-B-32/openai."""
    metric: str
    value: float = Field(ge=0, le=1)
    source: str
    """Source of the published value, e.g. a paper."""


class Corruption(Section):
    """Kind and level of a corruption that is applied to each image of a dataset."""

    name: Literal["blur", "noise", "jpeg", "brightness"]
    level: int = Field(ge=1, le=5)


class DataSet(Section):
    """A dataset of a suite, and the task that is evaluated on it."""

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
    """Groups of images (`source: …?group=COLUMN`) that are left out when the worst group is determined."""
    class_count: PositiveInt | None = None
    images: PositiveInt | None = None
    captions: PositiveInt | None = None
    """Expected numbers of classes, images and captions. Data with other numbers is an error."""
    metric: str | None = None
    """Metric that the table of a suite shows. Default: the main metric of the task, e.g. acc1."""
    corruption: Corruption | None = None
    version_of: str | None = None
    """Name of the original dataset, if this dataset is a shifted version of another dataset of the suite."""
    published: list[Published] = Field(default=[])
    license: str = ""
    """License of the data; "unknown" if no document was found."""
    checked: str = ""
    """Documents that state the source, the license and the numbers, and what was not verified."""

    @property
    def main_metric(self) -> str:
        """Name of the metric that the table of a suite shows."""
        return self.metric or TASKS[self.task].main_metric

    @property
    def is_downloaded_when_read(self) -> bool:
        """True if the source is on the Hub or at a URL, so reading may download it."""
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
            raise ValueError(f"{self.name} has the task {self.task}, which uses no training data; remove train")
        if learns and self.train is None:
            raise ValueError(f"{self.name} has the task {self.task}, which needs training data; add train: SOURCE")
        if self.source.startswith("wds:") and not _HUB_SOURCE.fullmatch(self.source):
            raise ValueError(f"{self.source} is not a dataset on the Hub; write wds:ORG/NAME or wds:ORG/NAME@REVISION")
        return self


class Suite(Section):
    """A named list of datasets that are evaluated together."""

    name: str = Field(pattern=r"^[\w.-]+$")
    title: str = ""
    datasets: list[DataSet] = Field(min_length=1)
    mean: bool = False
    """True: the table also shows the mean over all datasets, for models with a result on every dataset."""
    baseline: str | list[str] = Field(default=[])
    """Names of the baseline models, from which effective robustness is computed. Default: the first evaluated model."""

    @property
    def baselines(self) -> list[str]:
        """Names of the baseline models, always as a list."""
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
                    f"{entry.name} has version_of: {entry.version_of}, which is not a dataset of the suite; "
                    f"add the dataset {entry.version_of}, or remove version_of"
                )
        return self


Kind = TypeVar("Kind", DataSet, Suite)


def read_suite(name: str) -> Suite:
    """Read a suite by name or from a YAML file. A single dataset becomes a suite with one dataset.

    Args:
        name: name of a built-in suite or dataset, or path of a YAML file.

    Raises:
        DataError: the name is unknown, or the file is invalid.

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
            f"{name}: is not a built-in suite or dataset; {closest(name, _built_in(), _SUGGESTED)} (for your own "
            "suite, give a .yaml file)"
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
    """Return the file and the content of each built-in suite and dataset, keyed by name.

    The name is the file name without `.yaml`, or the key `name` of a dataset inside a suite's file.
    """
    found = {file.stem: (file, _values(file)) for file in sorted(suites_folder().glob("*.yaml"))}
    for file, values in [*found.values()]:
        for entry in values.get("datasets", []):
            if isinstance(entry, dict):
                found.setdefault(entry["name"], (file, entry))
    return found


def _with_named(datasets: list[Any], path: Path) -> list[Any]:
    """Replace the names in a list of datasets with the definitions of these datasets.

    A suite may use a shifted dataset without the original dataset. Then the key `version_of` is removed from the
    definition.
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
    """Return the definition of a dataset from a file next to the suite's file, or of a built-in dataset."""
    beside = path.parent / f"{name}.yaml"
    if is_file(beside):
        return _values(beside)
    if name in _built_in():
        return _built_in()[name][1]
    known = [*(file.stem for file in path.parent.glob("*.yaml")), *_built_in()]
    raise DataError(
        f"{path}: {name} is not a built-in dataset, and the folder of this file does not contain {beside.name}; "
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
