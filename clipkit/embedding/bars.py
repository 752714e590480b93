"""Progress bars that show how many images or captions are encoded."""

from typing import Any, Self

from tqdm.auto import tqdm


class Bar:
    """Progress bar with the speed and the remaining time. The bar disappears at the end.

    Args:
        kind: text before the bar, e.g. images or captions.
        total: number of items to encode.
        shown: draw the bar, if standard error is a terminal; False: only count the items.
        options: further options of tqdm.
    """

    def __init__(self, kind: str, total: int, *, shown: bool = True, **options: Any) -> None:
        self.kind = kind
        self.total = total
        self.done = 0
        hidden = None if shown and total else True
        self._bar = tqdm(total=total, desc=kind, unit="", disable=hidden, leave=False, **options)

    def update(self, count: int) -> None:
        """Advance the bar by `count` items, but not beyond the total."""
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
    """Factory of progress bars, e.g. for the images and for the captions of a dataset.

    Args:
        shown: draw the bars, if standard error is a terminal; False: only count the items.
    """

    def __init__(self, shown: bool) -> None:
        self.shown = shown

    def start(self, kind: str, total: int) -> Bar:
        """Return a new progress bar for `total` items. `kind` is the text before the bar, e.g. images."""
        return Bar(kind, total, shown=self.shown)
