"""Caption lengths in tokens, before truncation."""

from collections.abc import Callable

from clipkit.models.absent import check_present
from clipkit.models.dual_encoder import DualEncoder


def token_counter(model: DualEncoder) -> Callable[[list[str]], list[int]]:
    """Return a function from M strings to their numbers of tokens, including start and end tokens, before truncation.

    Raises:
        ModelError: the model has no text tower.

    Example:
        >>> token_counter(load("openai/clip-vit-base-patch32"))(["a dog"])    # doctest: +SKIP
        [4]
    """
    check_present(model.name, text=model.text)
    return model.text.tokenize.count
