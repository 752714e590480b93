"""The layers of the package: a module imports only from layers below its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "clipkit"

LEVELS = {
    "catalogue": 0,
    "errors": 0,
    "export_formats": 0,
    "files": 0,
    "seeds": 0,
    "images": 0,
    "recipe": 0,
    "processes": 0,
    "losses": 0,
    "metrics": 0,
    "models": 1,
    "data": 1,
    "evaluation": 2,
    "report": 2,
    "training": 3,
    "cli": 4,
    "__main__": 5,
}
# Within level 0 the small common ones may be used by the others.
COMMON = {"catalogue", "errors", "export_formats", "files", "seeds"}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            if node.module == "clipkit":
                yield from (f"clipkit.{name.name}" for name in node.names)
            elif node.module is not None:
                yield node.module


def violations(package: Path) -> list[str]:
    found = []
    for file in sorted(package.rglob("*.py")):
        own = file.relative_to(package).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for module in imports(file):
            if not module.startswith("clipkit"):
                continue
            target = room(module)
            if target in ("", "__version__"):  # the public names, imported lazily: for the top layer alone
                if LEVELS[own] < 4:
                    found.append(f"{file.relative_to(package)} imports {module}")
            elif target != own and target not in COMMON and LEVELS[target] >= LEVELS[own]:
                found.append(
                    f"{file.relative_to(package)} (level {LEVELS[own]}) imports {module} (level {LEVELS[target]})"
                )
    return found


def test_no_import_points_upward_or_sideways() -> None:
    assert violations(PACKAGE) == []


def test_every_room_has_a_level() -> None:
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__"} == set(LEVELS)


def test_the_test_bites(tmp_path: Path) -> None:
    for path, line in [
        ("losses/a.py", "from clipkit.models import load"),
        ("models/b.py", "def f():\n    from clipkit.data.pairs import Pairs"),
        ("data/c.py", "import clipkit"),
        ("report/d.py", "import clipkit.training.run"),
        ("cli/fine.py", "import clipkit.training.run\nfrom clipkit.errors import UserError"),
    ]:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(line)
    assert [line.split()[0] for line in violations(tmp_path)] == [
        "data/c.py",
        "losses/a.py",
        "models/b.py",
        "report/d.py",
    ]
