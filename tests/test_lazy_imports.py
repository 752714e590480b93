"""Importing clipkit, printing help and refusing what a user names load no heavy library."""

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

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
        HELP.format(argv=["clipkit", "search", "--help"]),
        HELP.format(argv=["clipkit", "demo", "--help"]),
        HELP.format(argv=["clipkit", "models", "--help"]),
        HELP.format(argv=["clipkit", "data", "check", "--help"]),
        HELP.format(argv=["clipkit", "--version"]),
    ],
)
def test_no_heavy_library_is_imported(run: str) -> None:
    subprocess.run([sys.executable, "-c", CODE.format(run=run)], check=True, capture_output=True, timeout=300)


REFUSED = [
    ("train missing.yaml", "missing.yaml"),
    ("train r.yaml", "nowhere.csv"),
    ("train r.yaml data.train=here.csv", "nowhere/model"),
    ("train r.yaml data.train=here.csv model.name=. data.validation=gone.parquet?caption=x", "gone.parquet"),
    ("train r.yaml data.train=[here.csv,{source: gone.tsv}]", "gone.tsv"),
    ("train r.yaml optim.lrr=1", "optim.lrr"),
    ("train r.yaml data.train=here.csv model.name=.", "here.csv"),
    ("train r.yaml data.train=pairs.csv model.name=. data.validation=here.csv", "here.csv"),
    ("train r.yaml data.train=pairs.csv model.name=. train.batch_size=3", "train.batch_size"),
    ("train r.yaml data.train=pairs.csv model.name=. data.validation=0.5 train.batch_size=2", "train.batch_size"),
    ("train r.yaml output=run", "run"),
    ("eval retrieval --model nowhere --data here.csv", "nowhere"),
    ("eval retrieval --model . --data nowhere.csv", "nowhere.csv"),
    ("eval retrieval --model . --data here.csv", "here.csv"),
    ("eval zeroshot --model a/b@c --data nowhere.csv", "a/b@c"),
    ("eval zeroshot --model . --data nowhere.csv", "nowhere.csv"),
    ("eval compositional --model . --data nowhere.json", "nowhere.json"),
    ("eval probe --model ./nowhere --data nowhere.csv", "./nowhere"),
    ("export nowhere/model --to onnx --out o", "nowhere/model"),
    ("merge . nowhere/model --out o", "nowhere/model"),
    ("push nowhere/model me/mine", "nowhere/model"),
    ("models nowhere/model", "nowhere/model"),
    ("train r.yaml data.train=here.csv model.name=. data.labelled=nowhere/x", "nowhere/x"),
    ("train r.yaml data.train=nowhere.tar", "nowhere.tar"),
    ("train r.yaml data.train=nowhere", "nowhere"),
    ("train r.yaml data.train=here.csv model.name=. eval.retention=nowhere/x", "nowhere/x"),
    ("train towers.yaml", "model.image.name nowhere/image"),
    ("train towers.yaml model.image.name=timm:resnet10t", "./nowhere/text"),
    ("train r.yaml data.train=here.csv model.name=. loss.name=distillation loss.teacher=./gone", "./gone"),
    ("eval compositional --model . --data nowhere", "nowhere"),
    ("eval compare nowhere.json here.csv", "nowhere.json"),
    ("eval compare here.csv nowhere.json", "nowhere.json"),
    ("eval suite nowhere.yaml --model .", "nowhere.yaml"),
    ("eval suite offline --model ./nowhere", "./nowhere"),
    ("data check here.csv --model ./nowhere", "./nowhere"),
    ("data check nowhere --model .", "nowhere"),
    ("data check here.csv --against nowhere", "nowhere"),
    ("data preview nowhere", "nowhere"),
    ("embed nowhere.csv --model . --out o", "nowhere.csv"),
    ("embed here.csv --model ./nowhere --out o", "./nowhere"),
    ("embed here.csv --model . --out .", "."),
    ("search nowhere x", "nowhere"),
    ("search . x", "."),
    ("doctor nowhere", "nowhere"),
    ("runs compare . nowhere", "."),
    ("runs compare nowhere .", "nowhere"),
]
FAILS = """
import json, re, sys
import clipkit.cli
for command in json.load(sys.stdin):
    sys.argv = ["clipkit", *re.findall(r"(?:\\[.*\\]|\\S)+", command)]
    try:
        clipkit.cli.main()
    except SystemExit as stop:
        assert stop.code == 2, stop.code
    names = ("torch", "transformers", "timm", "open_clip", "accelerate")
    assert not [name for name in names if name in sys.modules], command
"""


def test_what_a_user_names_is_checked_before_heavy_imports(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: {name: nowhere/model}\ndata: {train: nowhere.csv}\noutput: out\n")
    towers = "model: {image: {name: nowhere/image}, text: {name: ./nowhere/text}}"
    (tmp_path / "towers.yaml").write_text(f"{towers}\ndata: {{train: here.csv}}\noutput: out\n")
    (tmp_path / "here.csv").write_text("a,b\n1,2\n")
    (tmp_path / "pairs.csv").write_text("image,caption\na.png,A\nb.png,B\n")
    (tmp_path / "run").mkdir()
    for name in (".clipkit-run", "recipe.yaml"):
        (tmp_path / "run" / name).touch()
    commands = json.dumps([command for command, _ in REFUSED])
    done = subprocess.run(
        [sys.executable, "-c", FAILS], cwd=tmp_path, capture_output=True, text=True, timeout=300, input=commands
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(REFUSED)
    for (command, refused), line in zip(REFUSED, lines, strict=True):
        assert line.startswith(("clipkit: " + refused, "clipkit: r.yaml: " + refused)), command


@pytest.mark.parametrize("package", ["clipkit.data", "clipkit.models", "clipkit.search"])
def test_names_imported_on_first_use_are_those_that_type_checkers_see(package: str) -> None:
    module = import_module(package)
    assert module.__file__ is not None
    block = next(node for node in ast.parse(Path(module.__file__).read_text()).body if isinstance(node, ast.If))
    seen = {
        (node.module, alias.name) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    listed = {(f"{package}.{file}", name) for file, names in module._NAMES.items() for name in names.split()}
    assert listed == seen
    for _, name in sorted(listed):
        assert getattr(module, name) is not None


def test_public_names_resolve_and_typos_raise() -> None:
    import clipkit

    for name in clipkit.__all__:
        assert getattr(clipkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'tain'"):
        _ = clipkit.tain
