"""Caption lengths in tokens, before truncation."""

from collections.abc import Callable, Sequence

from clipkit.models.absent import check_present
from clipkit.models.dual_encoder import DualEncoder


def token_counter(model: DualEncoder) -> Callable[[list[str]], list[int]]:
    """Return a function that counts the tokens of each string before truncation.

    Start and end tokens are counted.

    Raises:
        ModelError: the model has no text tower.

    Example:
        >>> token_counter(load("openai/clip-vit-base-patch32"))(["a dog"])    # doctest: +SKIP
        [4]
    """
    check_present(model.name, text=model.text)
    return model.text.tokenize.count


def share_cut(model: DualEncoder, texts: Sequence[str]) -> float:
    """Return the share of strings, from 0 to 1, that are truncated to the context length of the text tower.

    Raises:
        ModelError: the model has no text tower.
    """
    lengths = token_counter(model)(list(texts))
    return sum(length > model.text.tokenize.context_length for length in lengths) / max(1, len(lengths))
