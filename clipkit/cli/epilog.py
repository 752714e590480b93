"""Help pages that end with a preformatted text; Typer would wrap the lines of an epilog."""

from collections.abc import Callable
from typing import Any

from typer.core import TyperCommand


def ending_with(text: Callable[[], str]) -> type[TyperCommand]:
    """Return a command class whose help ends with a text; `text` is called only when the help is shown."""

    class Command(TyperCommand):
        def format_epilog(self, ctx: Any, formatter: Any) -> None:
            formatter.write("\n" + text() + "\n")

    return Command
