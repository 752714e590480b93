"""The package's own sources: files, images, addresses and programs are opened in a few known places only."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "clipkit"

# Calls that open or write files, and the modules that may make them. To add one, be sure that what it opens cannot be
# named by data: files named by data are opened by clipkit.opening, images by clipkit.image_formats.
ALLOWED: dict[str, tuple[str, ...]] = {
    "Image.open": ("image_formats.py", "models/export/onnx_example.py"),
    "fsspec": ("data/sources/streams.py",),
    "urllib": ("data/sources/remote.py",),
    "torch.load": ("models/weights.py",),
    "pickle": ("processes.py",),  # from another process of the same run
    "os.open": ("cli/terminal.py", "opening.py", "data/output_folder.py", "files.py", "training/folder/"),
    "tarfile.open": ("data/shards.py", "data/sources/streams.py", "data/sources/shard_index.py"),
    "open to write": (
        "data/checks/fix.py", "data/shards.py", "data/sources/emoji.py", "embedding/cached.py", "embedding/store.py",
        "files.py", "run_files.py", "search/export.py", "search/layout.py", "search/log.py",
    ),
    "open to read": (
        "training/folder/", "data/sources/emoji.py", "data/sources/emoji_tests.py", "data/shards.py",
        "embedding/store.py", "parsing.py", "search/",
    ),
    "write": (
        "cli/push.py", "data/checks/fix.py", "data/sources/remote.py", "files.py",
        "embedding/store.py", "models/adapters/files.py", "models/composed.py", "models/dual_encoder.py",
        "models/export/", "models/from_modules.py", "models/publish/push.py", "search/export.py",
        "training/folder/checkpoint.py", "training/kept_model.py",
    ),
    "read": (
        "cli/", "embedding/cached.py", "embedding/store.py", "evaluation/result.py", "models/", "report/", "search/",
        "run_files.py", "training/", "data/manifest.py", "data/prompts.py", "data/shared_memory.py",
        "data/sources/emoji.py", "images.py",
    ),
}  # fmt: skip
PROGRAMS = ("subprocess", "os.system", "os.popen", "os.posix_spawn", "os.execv", "os.execve", "os.spawnv", "pty")


def kinds(path: str, node: ast.AST) -> Iterator[str]:
    """Yield the kinds of openings that a node is."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for name in names:
            for kind in ("fsspec", "subprocess", "urllib"):
                if name == kind or (name.startswith(f"{kind}.") and name not in ("urllib.parse", "urllib.error")):
                    yield kind
        return
    if not isinstance(node, ast.Call):
        return
    name = ast.unparse(node.func)
    last = name.rpartition(".")[2]
    if name in ("Image.open", "PIL.Image.open", "torch.load", "os.open", "tarfile.open"):
        yield name.removeprefix("PIL.")
    elif name.startswith(PROGRAMS):
        yield "subprocess"
    elif name in (
        "eval",
        "exec",
        "compile",
        "__import__",
        "yaml.load",
        "yaml.unsafe_load",
    ):
        yield "code"
    elif name in ("pickle.load", "pickle.loads"):
        yield "pickle"
    elif last == "load" and any(keyword.arg == "allow_pickle" for keyword in node.keywords):
        allows = next(keyword.value for keyword in node.keywords if keyword.arg == "allow_pickle")
        if not (isinstance(allows, ast.Constant) and allows.value is False):
            yield "code"
    elif last in ("write_text", "write_bytes"):
        yield "write"
    elif last in ("read_text", "read_bytes") and "." in name and not name.startswith("opening."):
        if not (
            path.startswith(("data/", "evaluation/explanation/", "evaluation/suites/corruptions", "embedding/"))
            and _is_stored(name)
        ):
            yield "read"
    elif last == "open" and name not in ("webbrowser.open", "opener.open"):
        mode = next((part.value for part in [*node.args, *(k.value for k in node.keywords if k.arg == "mode")]
                     if isinstance(part, ast.Constant) and str(part.value)[:1] in "rwax"), "r")  # fmt: skip
        if not name.startswith("fsspec.filesystem"):
            yield f"open to {'read' if str(mode)[:1] == 'r' else 'write'}"


def _is_stored(name: str) -> bool:
    """Return whether `read_bytes` is that of an image that is stored elsewhere, and not that of a path."""
    return name in ("image.read_bytes",)


def violations(package: Path) -> list[str]:
    found = []
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for kind in kinds(path, node):
                if not path.startswith(ALLOWED.get(kind, ("-",))):
                    found.append(f"{path}:{getattr(node, 'lineno', 0)}: {kind}: {ast.unparse(node)[:60]}")
    return found


def test_files_are_opened_in_known_places_only() -> None:
    assert not violations(PACKAGE), "\n" + "\n".join(violations(PACKAGE))


def test_every_allowance_is_in_use() -> None:
    used = {
        (kind, path)
        for file in PACKAGE.rglob("*.py")
        for path in [file.relative_to(PACKAGE).as_posix()]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for kind in kinds(path, node)
    }
    unused = [
        (kind, begins)
        for kind, places in ALLOWED.items()
        for begins in places
        if not any(kind == one and path.startswith(begins) for one, path in used)
    ]
    assert not unused


def test_planted_openings_are_reported(tmp_path: Path) -> None:
    lines = (
        "open(name)", "Path(name).open('w')", "open(name, mode='wb')", "Image.open(file)", "PIL.Image.open(file)",
        "import fsspec", "from fsspec.core import url_to_fs", "torch.load(file)", "path.write_text(text)",
        "path.write_bytes(content)", "path.read_bytes()", "Path(name).read_text()", "import subprocess",
        "os.system(name)", "os.popen(name)", "from urllib.request import urlopen", "os.open(name, 0)", "eval(text)",
        "exec(text)", "pickle.loads(content)", "np.load(file, allow_pickle=True)", "yaml.load(text)", "io.open(name)",
        "tarfile.open(name)",
    )  # fmt: skip
    (tmp_path / "bad.py").write_text("\n".join(lines))
    reported = {int(line.split(":")[1]) for line in violations(tmp_path)}
    assert [lines[number - 1] for number in range(1, len(lines) + 1) if number not in reported] == []
    (tmp_path / "bad.py").write_text("import urllib.parse\nnp.load(file, allow_pickle=False)\nread_text(path)\n")
    assert not violations(tmp_path)
