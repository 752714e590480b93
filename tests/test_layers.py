"""The layers of the package: a module imports only from layers below its own, and files never import in a circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "clipkit"

LEVELS = {
    "losses": 0,
    "metrics": 0,
    "errors": 0,
    "files": 0,
    "seeds": 0,
    "catalogue": 0,
    "closest": 0,
    "collectives": 0,
    "export_formats": 0,
    "extras": 0,
    "findings": 0,
    "image_formats": 0,
    "opening": 0,
    "overwriting": 0,
    "launchers": 0,
    "lazy": 0,
    "parsing": 0,
    "pixels": 0,
    "run_files": 0,
    "suite_files": 0,
    "tasks": 0,
    "versions": 0,
    "recipe": 1,
    "images": 1,
    "processes": 1,
    "models": 2,
    "data": 2,
    "embedding": 3,
    "suggestion": 3,
    "evaluation": 4,
    "report": 4,
    "search": 4,
    "training": 5,
    "cli": 6,
    "__main__": 6,
}
TOP = 6


def modules(package: Path) -> dict[str, Path]:
    """Dotted name of each module -> its file; a folder's name is its `__init__.py`."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = [package.name, *file.relative_to(package).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            # `from clipkit.data import pairs` names a module, `from clipkit.data import Pairs` what is in one.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name in known:
                yield name
            elif (parent := name.rpartition(".")[0]) in known:
                yield parent


def graph(package: Path) -> dict[str, list[str]]:
    known = modules(package)
    return {name: sorted({own for own in imports(file, known) if own != name}) for name, file in known.items()}


def level(module: str) -> int:
    parts = module.split(".")
    return LEVELS[parts[1]] if len(parts) > 1 else TOP


def violations(package: Path) -> list[str]:
    """Imports that point upward, or sideways to another folder or file of the same level above 0."""
    found = []
    for name, targets in graph(package).items():
        for target in targets:
            if name == package.name:  # its public names are imported on first use
                continue
            sideways = name.split(".")[:2] != target.split(".")[:2] and level(target) == level(name) not in (0, TOP)
            if level(target) > level(name) or sideways:
                found.append(f"{name} (level {level(name)}) imports {target} (level {level(target)})")
    return found


def circles(package: Path) -> list[str]:
    """Groups of modules each of which reaches the others by imports."""
    edges = graph(package)
    edges[package.name] = []
    reach = {name: reachable(name, edges) for name in edges}
    groups = {frozenset({name, *(other for other in reach[name] if name in reach[other])}) for name in edges}
    return [" ↔ ".join(sorted(group)) for group in groups if len(group) > 1]


def reachable(start: str, edges: dict[str, list[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in edges[waiting.pop()]:
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen - {start}


def plant(package: Path, files: dict[str, str]) -> None:
    (package / "__init__.py").parent.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    for path, text in files.items():
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).parent.joinpath("__init__.py").touch()
        (package / path).write_text(text)


def test_no_import_points_upward_or_sideways() -> None:
    assert violations(PACKAGE) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(PACKAGE) == []


def test_every_folder_and_file_has_a_level() -> None:
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__"} - {"py.typed"} == set(LEVELS)


def test_a_planted_upward_import_is_reported(tmp_path: Path) -> None:
    package = tmp_path / "clipkit"
    plant(
        package,
        {
            "models/load.py": "",
            "data/pairs.py": "",
            "training/run.py": "",
            "losses/a.py": "from clipkit.models.load import load",
            "models/b.py": "def f():\n    from clipkit.data.pairs import Pairs",
            "data/c.py": "import clipkit",
            "report/d.py": "import clipkit.training.run",
            "cli/fine.py": "import clipkit.training.run\nfrom clipkit.data import pairs",
        },
    )
    assert [line.split()[0] for line in violations(package)] == [
        "clipkit.data.c",
        "clipkit.losses.a",
        "clipkit.models.b",
        "clipkit.report.d",
    ]


def test_a_planted_circle_is_reported(tmp_path: Path) -> None:
    package = tmp_path / "clipkit"
    plant(
        package,
        {
            "models/a.py": "from clipkit.models.b import x",
            "models/b.py": "def f():\n    from clipkit.models import c",
            "models/c.py": "import clipkit.models.a",
            "models/d.py": "from clipkit.models import a",
        },
    )
    assert circles(package) == ["clipkit.models.a ↔ clipkit.models.b ↔ clipkit.models.c"]
