"""Ranks of right answers among all candidates, both ways, in tiles of scores that are never kept."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Scores in one tile are side × side. Fixed, so that figures do not depend on anybody's batch size: a matrix product of
# another shape may round differently, and that can break a tie the other way. At this size comparing and counting
# stay in the cache and cost a tenth of the product.
_SIDE = 1024


@dataclass(frozen=True)
class RetrievalRanks:
    """Where each right pair stands. A rank is 1 + higher scores + equal scores at a lower index."""

    pairs: Int[Tensor, "P 2"]
    """(image, text) rows that belong together."""
    among_images: Int[Tensor, " P"]
    """Rank of the pair's image when its text asks."""
    among_texts: Int[Tensor, " P"]
    """Rank of the pair's text when its image asks."""
    images: int
    texts: int

    @property
    def of_texts(self) -> Int[Tensor, " M"]:
        """Best rank of each text's images; 0 for a text that belongs to none."""
        return _best(self.pairs[:, 1], self.among_images, self.texts)

    @property
    def of_images(self) -> Int[Tensor, " N"]:
        """Best rank of each image's texts; 0 for an image without one."""
        return _best(self.pairs[:, 0], self.among_texts, self.images)

    @property
    def precision_of_texts(self) -> Float[Tensor, " M"]:
        """Average precision at R of each text, R being its number of images (Musgrave et al. 2020, MAP@R)."""
        return _average_precision_at_r(self.pairs[:, 1], self.among_images, self.texts)

    @property
    def precision_of_images(self) -> Float[Tensor, " N"]:
        """Average precision at R of each image, R being its number of texts."""
        return _average_precision_at_r(self.pairs[:, 0], self.among_texts, self.images)


def retrieval_ranks(
    image_features: Float[Tensor, "N D"],
    text_features: Float[Tensor, "M D"],
    image_of_text: Int[Tensor, " M"] | Int[Tensor, "P 2"],
    on_scores: Callable[[int], object] | None = None,
) -> RetrievalRanks:
    """Ranks of all right pairs, in time O(N M D) and memory O(N + M + P) beyond the features.

    Scores are float32 (float64 for float64 features), each computed in the same tile whenever it is needed, so that a
    score is equal to itself and ties are exact.

    Args:
        image_features: unit length.
        text_features: unit length.
        image_of_text: for each text the row of its image; or (image, text) pairs, where a text belongs to several.
        on_scores: called with the number of scores of each finished tile, for a progress bar.

    Example:
        >>> ranks = retrieval_ranks(torch.eye(3), torch.eye(3)[[0, 2]], torch.tensor([0, 1]))
        >>> ranks.of_texts.tolist(), ranks.of_images.tolist()
        ([1, 3], [1, 2, 0])
    """
    pairs = right_pairs(image_of_text)
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    tiles = _Tiles(image_features.to(dtype), text_features.to(dtype))
    image, text = pairs.T.to(image_features.device)
    scores = tiles.scores_of(image, text)
    from_texts = _Asking(text, image, scores, tiles.texts)
    from_images = _Asking(image, text, scores, tiles.images)
    for rows in tiles.images:
        for columns in tiles.texts:
            tile = tiles(rows, columns)
            from_images.count(tile, tiles.compared(rows, columns), rows, columns)
            from_texts.count(tile.T, tiles.compared(rows, columns).T, columns, rows)
            if on_scores is not None:
                on_scores(tile.numel())
    return RetrievalRanks(
        pairs, from_texts.ranks.cpu(), from_images.ranks.cpu(), len(image_features), len(text_features)
    )


def right_pairs(image_of_text: Int[Tensor, " M"] | Int[Tensor, "P 2"]) -> Int[Tensor, "P 2"]:
    """(image, text) pairs, each once."""
    if image_of_text.ndim == 2:
        return image_of_text.cpu().unique(dim=0)
    return torch.stack([image_of_text.cpu(), torch.arange(len(image_of_text))], dim=1)


class _Tiles:
    """The score matrix, image rows by text columns, a tile at a time in the same memory."""

    def __init__(self, images: Float[Tensor, "N D"], texts: Float[Tensor, "M D"]) -> None:
        self._images, self._texts = images, texts
        self.images, self.texts = _bands(len(images)), _bands(len(texts))
        self._scores = images.new_empty(_SIDE * _SIDE)
        self._compared = images.new_empty(_SIDE * _SIDE)

    def __call__(self, rows: slice, columns: slice) -> Float[Tensor, "h w"]:
        tile = self._in(self._scores, rows, columns)
        return torch.mm(self._images[rows], self._texts[columns].T, out=tile)

    def compared(self, rows: slice, columns: slice) -> Float[Tensor, "h w"]:
        """Room for the tile's comparisons."""
        return self._in(self._compared, rows, columns)

    def scores_of(self, image: Int[Tensor, " P"], text: Int[Tensor, " P"]) -> Float[Tensor, " P"]:
        """Scores of some pairs, each from its tile."""
        scores = self._images.new_empty(len(image))
        tile_of_pair = (image // _SIDE) * len(self.texts) + text // _SIDE
        order = tile_of_pair.argsort()
        numbers, counts = tile_of_pair[order].unique_consecutive(return_counts=True)
        for number, own in zip(numbers.tolist(), order.split(counts.tolist()), strict=True):
            rows, columns = self.images[number // len(self.texts)], self.texts[number % len(self.texts)]
            scores[own] = self(rows, columns)[image[own] - rows.start, text[own] - columns.start]
        return scores

    @staticmethod
    def _in(memory: Tensor, rows: slice, columns: slice) -> Tensor:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        return memory[: height * width].view(height, width)


class _Asking:
    """One direction: who asks, which candidate is right, and how many candidates were found to stand before it.

    Pairs are arranged by asking band and, within it, in layers that hold each asker at most once: a layer is one
    comparison with a threshold a row, however many right answers an asker has.
    """

    def __init__(self, asking: Tensor, right: Tensor, scores: Tensor, bands: list[slice]) -> None:
        self.ranks = torch.ones_like(asking)
        self._layers: dict[int, list[_Layer]] = {band.start: [] for band in bands}
        order = asking.argsort(stable=True)
        arranged = asking[order]
        ends = torch.searchsorted(arranged, torch.tensor([band.stop for band in bands], device=asking.device)).tolist()
        place = torch.arange(len(order), device=asking.device) - torch.searchsorted(arranged, arranged)
        for band, start, stop in zip(bands, [0, *ends], ends, strict=False):
            places = place[start:stop]
            by_place = places.argsort(stable=True)
            sizes = places.bincount().tolist()
            for own in order[start:stop][by_place].split(sizes) if sizes else []:
                rows = asking[own] - band.start
                whole = len(rows) == band.stop - band.start
                self._layers[band.start].append(_Layer(None if whole else rows, own, right[own], scores[own]))

    def count(self, tile: Tensor, compared: Tensor, asking: slice, candidates: slice) -> None:
        """Add the candidates of a tile (askers, candidates) that stand before the right ones."""
        for layer in self._layers[asking.start]:
            # An equal score stands before the right one where its index is lower.
            limit = torch.where(layer.right >= candidates.stop, layer.just_below, layer.score)[:, None]
            if layer.rows is None:
                scores = tile
                before = torch.gt(scores, limit, out=compared).sum(dim=1)
            else:
                scores = tile[layer.rows]
                before = (scores > limit).sum(dim=1, dtype=torch.int32)
            self.ranks[layer.pairs] += before.long()
            here = ((layer.right >= candidates.start) & (layer.right < candidates.stop)).nonzero()[:, 0]
            if len(here):
                index = torch.arange(candidates.start, candidates.stop, device=tile.device)
                equal = scores[here] == layer.score[here, None]
                lower = index < layer.right[here, None]
                self.ranks[layer.pairs[here]] += (equal & lower).sum(dim=1)


@dataclass
class _Layer:
    rows: Tensor | None
    """Of the band; None: all of them, in order."""
    pairs: Tensor
    right: Tensor
    score: Tensor

    def __post_init__(self) -> None:
        # Greater than this is at least the score.
        self.just_below = torch.nextafter(self.score, torch.full_like(self.score, -torch.inf))


def _bands(total: int) -> list[slice]:
    return [slice(start, min(start + _SIDE, total)) for start in range(0, total, _SIDE)]


def _best(asking: Tensor, ranks: Tensor, count: int) -> Tensor:
    best = torch.zeros(count, dtype=ranks.dtype)
    return best.scatter_reduce(0, asking, ranks, "amin", include_self=False)


def _average_precision_at_r(asking: Tensor, ranks: Tensor, count: int) -> Tensor:
    order = ranks.argsort(stable=True)
    order = order[asking[order].argsort(stable=True)]
    asking, ranks = asking[order], ranks[order]
    relevant = asking.bincount(minlength=count)
    found = torch.arange(1, len(asking) + 1) - torch.searchsorted(asking, asking)
    precision = torch.where(ranks <= relevant[asking], found.double() / ranks, 0.0)
    return torch.zeros(count, dtype=torch.float64).index_add(0, asking, precision) / relevant.clamp(min=1)
