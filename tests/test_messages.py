"""Messages and help texts of the package: one line each, with advice, in the words of the vocabulary."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from clipkit import errors

PACKAGE = Path(__file__).parents[1] / "clipkit"

# Beginnings of paths whose messages are still to be rewritten. Goal: empty.
NOT_CONVERTED: tuple[str, ...] = ()

# Parts of messages that need no advice, because nothing can be done or the inserted text contains it.
WITHOUT_ADVICE: tuple[str, ...] = (
    "has images of the class …, …",
    "--policy …: …",
    "continue with --resume (in Python: resume=True)",
)

BANNED = (
    r"\bc(an|ould) ?not be (had|said)\b", r"\bheed", r"\bmend(s|ed)?\b", r"stand-ins?\b", r"\b(stands?|stood) in\b",
    r"(?<!there )\b(is|are) no (?!(such|longer|more)\b)\w+", r"\bpictures?\b", r"\bgo(es)? on with\b", r"\bunasked\b",
    r"\bcolour", r"\bgrey\b", r"\bneighbour", r"\blicence", r"(normal|token|optim|recogn)is(e|ing)",
)  # fmt: skip

# Advice: a clause that begins with an imperative, or any clause after a semicolon, e.g. the valid options.
ADVICE = re.compile(
    r"; \S|(?:^|[:,.(]\s|\b(?:or|and|then)\s)(?:add|allow|change|check|choose|close|compare|continue|convert|copy|"
    r"correct|create|decrease|delete|drop|edit|enable|evaluate|export|fetch|fill|fix|free|give|increase|install|keep|leave|let|"
    r"load|lower|make|merge|move|open|pass|pip|put|raise|read|reduce|remove|rename|repair|replace|resume|run|save|"
    r"see|select|set|shorten|specify|split|start|stop|train|try|turn|unset|update|upgrade|use|wait|write)\b",
    re.IGNORECASE,
)


class Message(NamedTuple):
    where: str
    text: str


def texts_of(node: ast.expr) -> list[str]:
    """Return the texts that an expression can have, with … for each inserted value."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(part.value if isinstance(part, ast.Constant) else "…" for part in parts)]  # type: ignore[misc]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [first + second for first in texts_of(left) for second in texts_of(right)]
        case ast.IfExp(body=body, orelse=orelse):
            return [*texts_of(body), *texts_of(orelse)]
    return ["…"]


def calls(package: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """Yield path, name of the called function, and call, for all calls in the package."""
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                yield path, node.func.id if isinstance(node.func, ast.Name) else node.func.attr, node


def messages(path: str, node: ast.expr) -> list[Message]:
    return [Message(f"{path}:{node.lineno}", text) for text in texts_of(node) if re.search(r"\w", text)]


def error_messages(package: Path) -> Iterator[Message]:
    names = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, BaseException)}
    for path, name, call in calls(package):
        # Pydantic turns the ValueErrors of a recipe's validators into one RecipeError.
        if call.args and (name in names or (name == "ValueError" and path.startswith("recipe/"))):
            yield from messages(path, call.args[0])


def help_texts(package: Path) -> Iterator[Message]:
    for path, name, call in calls(package):
        if name in ("Option", "Argument", "Typer"):
            for keyword in call.keywords:
                if keyword.arg == "help":
                    yield from messages(path, keyword.value)


def finding_texts(package: Path) -> Iterator[Message]:
    """Yield message and advice of all findings."""
    for path, name, call in calls(package):
        if name == "Finding":
            for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
                yield from messages(path, argument)


def faults(message: Message) -> list[str]:
    """Return what is wrong with any text: line breaks and banned words."""
    words = [match[0] for pattern in BANNED if (match := re.search(pattern, message.text, re.IGNORECASE))]
    return [*(["more than one line"] if "\n" in message.text else []), *(f"banned: {word}" for word in words)]


def faults_of_error(message: Message) -> list[str]:
    advised = ADVICE.search(message.text) or any(part in message.text for part in WITHOUT_ADVICE)
    ends = message.text.endswith(".")
    return [*faults(message), *([] if advised else ["no advice"]), *(["ends with a period"] if ends else [])]


def faults_of_help(message: Message) -> list[str]:
    return [*faults(message), *([] if message.text.endswith(".") else ["does not end with a period"])]


def report(package: Path) -> list[str]:
    """Return all faults of all converted files, one per line."""
    lines = []
    for collect, check in (
        (error_messages, faults_of_error),
        (help_texts, faults_of_help),
        (finding_texts, faults),
    ):
        for message in collect(package):
            if not message.where.startswith(NOT_CONVERTED):
                lines += [f"{message.where}: {fault}: {message.text}" for fault in check(message)]
    return lines


def test_every_message_is_one_line_with_advice_in_plain_words() -> None:
    found = report(PACKAGE)
    assert not found, "\n" + "\n".join(found)


def test_planted_faults_are_reported(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        'DataError(f"{file}: cannot be had; mend it")\n'
        'raise errors.ModelError(f"{name}: unreadable")\n'
        'OutputError("exists" if a else "is\\nthere; delete it.")\n'
        'typer.Option(help="Of the picture")\n'
        'Finding("name", "note", "x is no image", "heed it")\n'
        'ValueError("of no recipe")\n'
    )
    faults_of_line = [line.split(": ", 1) for line in report(tmp_path)]
    assert [(place.rpartition(":")[2], fault.partition(": ")[0]) for place, fault in faults_of_line] == [
        ("1", "banned"), ("1", "banned"), ("2", "no advice"), ("3", "no advice"), ("3", "more than one line"),
        ("3", "ends with a period"), ("4", "banned"), ("4", "does not end with a period"), ("5", "banned"),
        ("5", "banned"),
    ]  # fmt: skip


def test_good_messages_pass(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(
        'DataError(f"{file}: not found; paths are relative to the working directory")\n'
        'DataError("there is no such suite, choose one of a, b")\n'
        'typer.Argument(metavar="M", help="A model.")\n'
        'Finding("name", "note", "the loss is no longer finite", "lower optim.lr", step)\n'
    )
    assert report(tmp_path) == []


def test_values_are_inserted_into_texts() -> None:
    """A text with braces around an expression has lost its prefix f."""
    forgotten = []
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        shown = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        shown |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        forgotten += [
            f"{file.name}:{node.lineno}: {node.value}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in shown
            if re.search(r"\{[a-z_]+(\.[a-z_]+|\[[^\]]*\]|\([^)]*\))+[^}]*\}", node.value)
        ]
    assert not forgotten
