"""Progress bars of encoding."""

from typing import Any, Self

from tqdm.auto import tqdm


class Bar:
    """Progress bar with the speed and the time left; it disappears at the end.

    Args:
        kind: kind of the items: images or captions.
        total: number of items.
        shown: False: count items without a bar. Without a terminal at standard error, nothing is printed either.
        options: further options of tqdm.
    """

    def __init__(self, kind: str, total: int, *, shown: bool = True, **options: Any) -> None:
        self.kind = kind
        self.total = total
        self.done = 0
        hidden = None if shown and total else True
        self._bar = tqdm(total=total, desc=kind, unit="", disable=hidden, leave=False, **options)

    def update(self, count: int) -> None:
        """Count items; more than the total are ignored."""
        count = min(count, self.total - self.done)
        self.done += count
        self._bar.update(count)

    def note(self, text: str) -> None:
        """Show a text at the end of the bar."""
        self._bar.set_postfix_str(text, refresh=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class Bars:
    """Starts a progress bar for each kind of items of a dataset.

    Args:
        shown: False: the bars count items without being shown.
    """

    def __init__(self, shown: bool) -> None:
        self.shown = shown

    def start(self, kind: str, total: int) -> Bar:
        """Return a bar for a number of images or captions."""
        return Bar(kind, total, shown=self.shown)
