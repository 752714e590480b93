"""Importing clipkit and printing help load no heavy library."""

import subprocess
import sys

import pytest

CODE = """
import sys
{run}
names = ("torch", "transformers", "datasets", "timm", "open_clip", "accelerate", "matplotlib", "numpy", "PIL")
heavy = [name for name in names if name in sys.modules]
assert not heavy, heavy
"""
HELP = """
import clipkit.cli
sys.argv = {argv}
try:
    clipkit.cli.main()
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
"""


@pytest.mark.parametrize(
    "run",
    [
        "import clipkit; assert clipkit.__version__",
        "from clipkit.recipe import Recipe",
        HELP.format(argv=["clipkit", "--help"]),
        HELP.format(argv=["clipkit", "train", "--help"]),
        HELP.format(argv=["clipkit", "eval", "--help"]),
        HELP.format(argv=["clipkit", "eval", "retrieval", "--help"]),
        HELP.format(argv=["clipkit", "eval", "zeroshot", "--help"]),
        HELP.format(argv=["clipkit", "demo", "--help"]),
        HELP.format(argv=["clipkit", "models", "--help"]),
        HELP.format(argv=["clipkit", "data", "check", "--help"]),
        HELP.format(argv=["clipkit", "--version"]),
    ],
)
def test_no_heavy_library_is_imported(run: str) -> None:
    subprocess.run([sys.executable, "-c", CODE.format(run=run)], check=True, capture_output=True, timeout=60)


def test_public_names_resolve_and_typos_raise() -> None:
    import clipkit

    for name in clipkit.__all__:
        assert getattr(clipkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'tain'"):
        _ = clipkit.tain
