"""Progress bars that show how many images or captions are encoded."""

from typing import Any, Self

from tqdm.auto import tqdm


class Bar:
    """Progress bar with the speed and the time left; it disappears at the end.

    Args:
        kind: text before the bar: images or captions.
        total: number of items to encode.
        shown: False: count the items, but draw nothing. A bar is drawn only if standard error is a terminal.
        options: further options of tqdm.
    """

    def __init__(self, kind: str, total: int, *, shown: bool = True, **options: Any) -> None:
        self.kind = kind
        self.total = total
        self.done = 0
        hidden = None if shown and total else True
        self._bar = tqdm(total=total, desc=kind, unit="", disable=hidden, leave=False, **options)

    def update(self, count: int) -> None:
        """Add a number of items to the progress, which never exceeds the total."""
        count = min(count, self.total - self.done)
        self.done += count
        self._bar.update(count)

    def note(self, text: str) -> None:
        """Show a text to the right of the progress bar."""
        self._bar.set_postfix_str(text, refresh=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class Bars:
    """Factory of progress bars: one for the images of a dataset, one for its captions.

    Args:
        shown: False: the bars count items, but draw nothing.
    """

    def __init__(self, shown: bool) -> None:
        self.shown = shown

    def start(self, kind: str, total: int) -> Bar:
        """Return a new progress bar for `total` items of a kind: images or captions."""
        return Bar(kind, total, shown=self.shown)
