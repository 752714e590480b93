"""Help that ends with a text as it is: an epilog of the library would be wrapped anew."""

from collections.abc import Callable
from typing import Any

from typer.core import TyperCommand


def ending_with(text: Callable[[], str]) -> type[TyperCommand]:
    """A kind of command whose help ends with this text, which is made only when it is shown."""

    class Command(TyperCommand):
        def format_epilog(self, ctx: Any, formatter: Any) -> None:
            formatter.write("\n" + text() + "\n")

    return Command
