"""Help pages that end with a preformatted text, whose lines Typer's epilog would wrap."""

from collections.abc import Callable
from typing import Any

from typer.core import TyperCommand


def ending_with(text: Callable[[], str]) -> type[TyperCommand]:
    """Return a command class whose help page ends with the text that `text()` returns."""

    class Command(TyperCommand):
        def format_epilog(self, ctx: Any, formatter: Any) -> None:
            formatter.write("\n" + text() + "\n")

    return Command
