"""The pages for users: links lead somewhere, commands and recipe keys exist."""

import ast
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import clipkit
from clipkit.cli import app
from clipkit.recipe import Recipe
from clipkit.recipe.section import Section

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").glob("*.md"))]
IDS = [page.name for page in PAGES]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_and_anchors_resolve(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def commands(page: Path) -> Iterator[list[str]]:
    """Words after `clipkit` in each command line of a page: in code blocks, and in code between backticks."""
    blocks = FENCE.findall(page.read_text(encoding="utf-8"))
    lines = [line for language, block in blocks if language == "bash" for line in block.splitlines()]
    lines += [line[2:] for _, block in blocks for line in block.splitlines() if line.startswith("$ ")]
    lines += [code for code in CODE.findall(prose(page)) if re.match(r"clipkit [a-z]", code)]
    for line in lines:
        words = shlex.split(line, comments=True)
        if "clipkit" in words and (words[0] == "clipkit" or "-m" in words):
            yield words[words.index("clipkit") + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_and_options_exist(page: Path) -> None:
    recipe_keys = dict(keys(Recipe))
    for words in commands(page):
        line, rest = f"{page.name}: clipkit {' '.join(words)}", list(words)
        command: Any = typer.main.get_command(app)
        while hasattr(command, "commands") and rest and rest[0] not in ("…", "--help"):
            names = rest.pop(0).split("|")
            assert set(names) <= set(command.commands), line
            command = command.commands[names[0]]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        given = {word.strip("[]").partition("=")[0] for word in rest if word.lstrip("[").startswith("--")}
        assert given <= known, f"{line}: {sorted(given - known)}"
        if words[0] == "train":
            changed = {word.partition("=")[0] for word in rest if re.match(r"[a-z_.]+=", word)} - {"key.sub"}
            sections = {key.rpartition(".")[0] for key in recipe_keys} | {key.partition(".")[0] for key in recipe_keys}
            assert changed <= {*recipe_keys, *sections}, f"{line}: {sorted(changed)}"
        for word in rest:
            assert not word.startswith("recipes/") or (ROOT / word).is_file(), line


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_examples_use_public_names(page: Path) -> None:
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            ast.parse("{" + block + "}" if block.lstrip().startswith('"') else block)  # a row of a table, or code
            for name in re.findall(r"(?<!from )\bclipkit\.(\w+)", block):
                assert name in clipkit.__all__, f"{page.name}: clipkit.{name}"


def keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a recipe with its default; losses and heads of views are one key."""
    for name, field in section.model_fields.items():
        kinds = typing.get_args(field.annotation) or (field.annotation,)
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        if inner and not (prefix.startswith("views.") and name in ("loss", "head")):
            yield from keys(inner[0], f"{prefix}{name}.")
        else:
            default = field.default
            yield prefix + name, default.model_dump(mode="json") if isinstance(default, Section) else default


def test_recipe_page_has_every_key_with_its_default() -> None:
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.+?) \| ", text, re.MULTILINE))
    expected = dict(keys(Recipe))
    assert set(rows) == set(expected)
    for key, default in expected.items():
        if rows[key] == "required":
            assert key in ("data.train", "output", "translations.teacher")
            continue
        written = yaml.safe_load(rows[key].strip("`"))
        if isinstance(default, tuple):
            default = list(default)
        if key.startswith("views.") and key.endswith(".loss"):
            default = {"name": default["name"]}
        assert written == default, key
