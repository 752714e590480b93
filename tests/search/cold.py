"""Searches in a new process, whose start takes most of the time."""

import subprocess
import sys
from collections.abc import Sequence

_CODE = """
import sys
import clipkit.cli
try:
    clipkit.cli.main()
finally:
    assert "torch" not in sys.modules
"""


def printed_without_torch(arguments: Sequence[str]) -> str:
    """Return what `clipkit search` prints, after checking that it does not import torch, which takes seconds."""
    command = [sys.executable, "-c", _CODE, "search", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
