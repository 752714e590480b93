"""Size of the wheel, computed from the files that go into it: building one takes minutes."""

import base64
import hashlib
import io
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LARGEST = 1 << 20  # 1 MB as `ls -lh` shows it


def wheel_size() -> int:
    """Return the size in bytes of the wheel that hatchling builds from this source tree.

    It is 0.2 % too small, since a few lines of METADATA are left out.
    """
    target = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    folders = {package: package for package in target["packages"]} | target["force-include"]
    written, record = io.BytesIO(), ""
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as wheel:
        for folder, name in folders.items():
            for file in sorted((ROOT / folder).rglob("*")):
                if file.is_file() and "__pycache__" not in file.parts:
                    content = file.read_bytes()
                    where = f"{name}/{file.relative_to(ROOT / folder).as_posix()}"
                    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                    record += f"{where},sha256={digest},{len(content)}\n"
                    wheel.writestr(where, content)
        for file in (ROOT / "README.md", ROOT / "LICENSE"):
            wheel.writestr(f"dist-info/{file.name}", file.read_bytes())
        wheel.writestr("dist-info/RECORD", record)
    return len(written.getvalue())


def test_the_wheel_is_small() -> None:
    size = wheel_size()
    assert size < LARGEST, f"the wheel would have {size:,} bytes, more than {LARGEST:,}"
