"""What a suite is made of: data sets with their tasks, one YAML file each, and lists of them."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, PositiveInt, ValidationError, model_validator

from clipkit.errors import DataError
from clipkit.recipe.problems import first_problem
from clipkit.recipe.section import Section
from clipkit.tasks import TASKS

_OF_HUB = re.compile(r"wds:[\w.-]+/[\w.-]+(@[\w./-]+)?")
_NEAR = 3  # names that are put forward for one that is none


class Published(Section):
    """A figure that somebody else published."""

    model: str
    """As clipkit names it, where it has a name: open_clip:ViT-B-32/openai."""
    metric: str
    value: float = Field(ge=0, le=1)
    source: str
    """Where it stands."""


class Corruption(Section):
    """What is done to each image first, on the fly."""

    name: Literal["blur", "noise", "jpeg", "brightness"]
    level: int = Field(ge=1, le=5)


class DataSet(Section):
    """One data set with its task."""

    name: str = Field(pattern=r"^[\w.-]+$")
    title: str = ""
    task: Literal["zeroshot", "retrieval", "compositional", "probe"]
    source: str
    """Any data as the other commands take it; `wds:ORG/NAME[@REVISION]`, a Hub data set as CLIP_benchmark has them;
    `twemoji:groups` and `twemoji:LANGUAGE`, built from packages that pip installs."""
    split: str = "test"
    """Of `wds:` sets."""
    train: str | None = None
    """Of a probe: what it learns from; of a `wds:` set the name of a split."""
    classes: str | list[str] | dict[str, str | list[str]] | None = None
    """Names in prompts, in a file or here; the data's own where not given."""
    templates: str | list[str] | None = None
    """A named set, a file, or here; the data's own where not given."""
    class_count: PositiveInt | None = None
    images: PositiveInt | None = None
    captions: PositiveInt | None = None
    """What is known of it; a set that has another number is refused."""
    metric: str | None = None
    """The figure in the table; acc1, mean_recall, acc or lp_acc1 where not given."""
    corruption: Corruption | None = None
    version_of: str | None = None
    """The data set whose shifted version this is; of no consequence where a suite names this one without that one."""
    published: list[Published] = Field(default=[])

    @property
    def main_metric(self) -> str:
        """The figure in the table."""
        return self.metric or TASKS[self.task].main_metric

    @model_validator(mode="after")
    def _fits_its_task(self) -> Self:
        if self.train is not None and self.task != "probe":
            raise ValueError(f"train belongs to a probe, and {self.name} is of {self.task}")
        if self.task == "probe" and self.train is None:
            raise ValueError(f"{self.name} is a probe, which learns from something; give train")
        if self.source.startswith("wds:") and not _OF_HUB.fullmatch(self.source):
            raise ValueError(f"{self.source} is no data set of the Hub; write wds:ORG/NAME or wds:ORG/NAME@REVISION")
        return self


class Suite(Section):
    """Several data sets, measured together."""

    name: str = Field(pattern=r"^[\w.-]+$")
    title: str = ""
    datasets: list[DataSet] = Field(min_length=1)
    baseline: str | list[str] = Field(default=[])
    """The models that robustness is held against; the first one that is measured where not given."""

    @property
    def baselines(self) -> list[str]:
        """The models that robustness is held against."""
        return [self.baseline] if isinstance(self.baseline, str) else self.baseline

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        names = [own.name for own in self.datasets]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"{twice[0]} stands in datasets twice; give each its own name")
        for own in self.datasets:
            if own.version_of is not None and own.version_of not in names:
                raise ValueError(f"{own.name} is a version_of {own.version_of}, which is not among the datasets")
        return self


Kind = TypeVar("Kind", DataSet, Suite)


def suites_folder() -> Path:
    """Where the shipped files lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[2]
    installed = package / "suites"
    return installed if installed.is_dir() else package.parent / "benchmarks" / "suites"


def read_suite(name: str) -> Suite:
    """A shipped suite or data set by its name, or a YAML file of one.

    Raises:
        DataError: there is none, or something in it is wrong; names the file and the key.

    Example:
        >>> read_suite("offline").name
        'offline'
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = suites_folder() / f"{name}.yaml"
        if not path.is_file():
            known = sorted(own.stem for own in suites_folder().glob("*.yaml"))
            longer = [own for own in known if own.startswith(name)]
            near = (longer or difflib.get_close_matches(name, known, _NEAR, 0.5))[:_NEAR]
            suites = [own for own in known if "datasets" in _values(suites_folder() / f"{own}.yaml")]
            hint = (
                f"did you mean {' or '.join(near)}"
                if near
                else f"there are {', '.join(suites)}, and {len(known) - len(suites)} single data sets"
            )
            raise DataError(f"{name}: there is no such suite; {hint}, or is it a file of your own (.yaml)?")
    values = _values(path)
    if "datasets" not in values:
        entry = _checked(DataSet, {own: value for own, value in values.items() if own != "version_of"}, path)
        return Suite(name=entry.name, title=entry.title, datasets=[entry])
    datasets = values["datasets"]
    if isinstance(datasets, list):
        datasets = _all_of(datasets, path)
    return _checked(Suite, {**values, "datasets": datasets}, path)


def _all_of(datasets: list[Any], path: Path) -> list[Any]:
    """With those that are named read from their files. A version of something that is not here is one by itself."""
    found = [_named(own, path) if isinstance(own, str) else own for own in datasets]
    names = {own.get("name") for own in found if isinstance(own, dict)}
    return [
        {key: value for key, value in own.items() if key != "version_of"}
        if isinstance(given, str) and own.get("version_of") not in names
        else own
        for given, own in zip(datasets, found, strict=True)
    ]


def _named(name: str, path: Path) -> dict[str, Any]:
    """Of a data set that a suite names: beside the suite, or a shipped one."""
    for folder in (path.parent, suites_folder()):
        if (folder / f"{name}.yaml").is_file():
            return _values(folder / f"{name}.yaml")
    raise DataError(f"{path}: names the data set {name}, for which there is no file {name}.yaml")


def _values(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; give a suite's name or a YAML file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: is no mapping; a suite has name and datasets, a data set name, task and source")
    return values


def _checked(kind: type[Kind], values: Mapping[str, Any], path: Path) -> Kind:
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(kind, error)}") from None
