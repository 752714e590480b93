"""Ranks of right answers among all candidates, both ways, in tiles of scores that are never kept."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.metrics.order import of_keys, order_keys

# Scores in one tile are side × side. Fixed, so that figures do not depend on anybody's batch size: a matrix product of
# another shape may round differently, and that can break a tie the other way. At this size comparing and counting
# stay in the cache and cost a tenth of the product.
_SIDE = 1024
# Right answers of one asker up to which each is a comparison of its own.
_LAYERS = 32

# Scores, and rows of what was found.
Answers = tuple[Float[Tensor, "Q K"], Int[Tensor, "Q K"]]


@dataclass(frozen=True)
class RetrievalRanks:
    """Where each right pair stands. A rank is 1 + higher scores + equal scores at a lower index."""

    pairs: Int[Tensor, "P 2"]
    """(image, text) rows that belong together."""
    among_images: Int[Tensor, " P"]
    """Rank of the pair's image when its text asks."""
    among_texts: Int[Tensor, " P"]
    """Rank of the pair's text when its image asks."""
    scores: Float[Tensor, " P"]
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
    *,
    on_scores: Callable[[int], object] | None = None,
    part: tuple[int, int] = (0, 1),
    summed: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> RetrievalRanks:
    """Ranks of all right pairs, in memory O(N + M + P) beyond the features.

    Scores are float32 (float64 for float64 features). All come from products of one shape, so that equal features
    have scores that are equal to the bit, and ties are exact.

    Args:
        image_features: unit length.
        text_features: unit length.
        image_of_text: for each text the row of its image; or (image, text) pairs, where a text belongs to several.
        on_scores: called with the number of scores of each finished tile, for a progress bar.
        part: which of how many shares of the tiles to go over, where several processes do it together.
        summed: adds up their counts (P,).

    Raises:
        ValueError: `image_of_text` does not fit the features.

    Example:
        >>> ranks = retrieval_ranks(torch.eye(3), torch.eye(3)[[0, 2]], torch.tensor([0, 1]))
        >>> ranks.of_texts.tolist(), ranks.of_images.tolist()
        ([1, 3], [1, 2, 0])
    """
    pairs = right_pairs(image_of_text)
    _check_fit(pairs, len(image_features), len(text_features), a_text_each=image_of_text.ndim == 1)
    tiles = Tiles(image_features, text_features)
    image, text = pairs.T.to(image_features.device)
    scores = tiles.scores_of(image, text)
    from_texts = _Asking(text, image, scores, tiles.texts)
    from_images = _Asking(image, text, scores, tiles.images)
    for rows in tiles.images[part[0] :: part[1]]:
        for columns in tiles.texts:
            tile = tiles(rows, columns)
            compared = tiles.compared[: tile.shape[0], : tile.shape[1]]
            from_images.count(tile, compared, rows, columns)
            from_texts.count(tile.T, compared.T, columns, rows)
            if on_scores is not None:
                on_scores(tile.numel())
    return RetrievalRanks(
        pairs,
        1 + summed(from_texts.before).cpu(),
        1 + summed(from_images.before).cpu(),
        scores.cpu(),
        len(image_features),
        len(text_features),
    )


def similarity(x: Float[Tensor, "R D"], y: Float[Tensor, "C D"]) -> Float[Tensor, "R C"]:
    """All scores, computed as `retrieval_ranks` does: equal rows have equal scores to the bit, in any place."""
    tiles = Tiles(x, y)
    whole = tiles.dtype_of(x).new_empty(len(x), len(y))
    for rows in tiles.images:
        for columns in tiles.texts:
            whole[rows, columns] = tiles(rows, columns)
    return whole


def top_answers(
    image_features: Float[Tensor, "N D"], text_features: Float[Tensor, "M D"], count: int
) -> tuple[Answers, Answers]:
    """For each text its highest-scored images, and for each image its highest-scored texts, in order.

    Returns:
        (M, K) scores and rows of images, (N, K) scores and rows of texts.
    """
    tiles = Tiles(image_features.float(), text_features.float())
    least = torch.iinfo(torch.int64).min
    of_texts = image_features.new_full((len(text_features), min(count, len(image_features))), least, dtype=torch.int64)
    of_images = image_features.new_full((len(image_features), min(count, len(text_features))), least, dtype=torch.int64)
    for rows in tiles.images:
        for columns in tiles.texts:
            tile = tiles(rows, columns)
            for best, asking, scores, first in (
                (of_images, rows, tile, columns.start),
                (of_texts, columns, tile.T.contiguous(), rows.start),
            ):
                candidates = torch.cat([best[asking], order_keys(scores, first)], dim=1)
                best[asking] = candidates.topk(best.shape[1], dim=1).values
    return of_keys(of_texts), of_keys(of_images)


def right_pairs(image_of_text: Int[Tensor, " M"] | Int[Tensor, "P 2"]) -> Int[Tensor, "P 2"]:
    """(image, text) pairs, each once."""
    if image_of_text.ndim == 2:
        return image_of_text.cpu().unique(dim=0)
    return torch.stack([image_of_text.cpu(), torch.arange(len(image_of_text))], dim=1)


def _check_fit(pairs: Int[Tensor, "P 2"], images: int, texts: int, a_text_each: bool) -> None:
    """Else a part of what the caller has would be scored without a word."""
    if a_text_each and len(pairs) != texts:
        raise ValueError(f"image_of_text has {len(pairs)} entries for {texts} texts; give one a text")
    if not len(pairs):
        raise ValueError("image_of_text is empty, so there is nothing to find")
    for kind, count, rows in (("image", images, pairs[:, 0]), ("text", texts, pairs[:, 1])):
        wrong = rows[(rows < 0) | (rows >= count)]
        if len(wrong):
            raise ValueError(f"image_of_text has the {kind} {int(wrong[0])}, and there are {count}, counted from 0")


class Tiles:
    """The score matrix, image rows by text columns, a tile at a time in the same memory.

    The last tile of a row or column is a whole one too, filled up with zeros: a product of another shape rounds
    differently, and then equal features would not have equal scores.
    """

    def __init__(self, images: Float[Tensor, "N D"], texts: Float[Tensor, "M D"]) -> None:
        self._images, self._texts = self.dtype_of(images), self.dtype_of(texts)
        # A handful of images is no reason for a million scores.
        self.side = side = min(_SIDE, 1 << max(len(images), len(texts), 2).bit_length())
        self.images, self.texts = _bands(len(images), side), _bands(len(texts), side)
        self._padded = {id(own): _padded(own[side * (len(own) // side) :], side) for own in (self._images, self._texts)}
        self._scores = self._images.new_empty(side, side)
        self.compared = self._images.new_empty(side, side)
        """Room for a tile's comparisons."""

    @staticmethod
    def dtype_of(features: Tensor) -> Tensor:
        """The features in the type that they are scored in."""
        return features.to(torch.promote_types(features.dtype, torch.float32))

    def __call__(self, rows: slice, columns: slice) -> Float[Tensor, "h w"]:
        torch.mm(self._band(self._images, rows), self._band(self._texts, columns).T, out=self._scores)
        return self._scores[: rows.stop - rows.start, : columns.stop - columns.start]

    def _band(self, features: Tensor, band: slice) -> Tensor:
        return features[band] if band.stop - band.start == self.side else self._padded[id(features)]

    def scores_of(self, image: Int[Tensor, " P"], text: Int[Tensor, " P"]) -> Float[Tensor, " P"]:
        """Scores of some pairs, each from its tile."""
        scores = self._images.new_empty(len(image))
        tile_of_pair = (image // self.side) * len(self.texts) + text // self.side
        order = tile_of_pair.argsort()
        numbers, counts = tile_of_pair[order].unique_consecutive(return_counts=True)
        for number, own in zip(numbers.tolist(), order.split(counts.tolist()), strict=True):
            rows, columns = self.images[number // len(self.texts)], self.texts[number % len(self.texts)]
            scores[own] = self(rows, columns)[image[own] - rows.start, text[own] - columns.start]
        return scores


class _Asking:
    """One direction: who asks, which candidates are right, and how many candidates were found to stand before each.

    Pairs are arranged by asking band and, within it, in layers that hold each asker at most once: a layer is one
    comparison with a threshold a row. Askers with many right answers are looked up instead, one by one.
    """

    def __init__(self, asking: Tensor, right: Tensor, scores: Tensor, bands: list[slice]) -> None:
        self.before = torch.zeros_like(asking)
        self._layers: dict[int, list[_Layer]] = {band.start: [] for band in bands}
        self._many: dict[int, list[_Many]] = {band.start: [] for band in bands}
        # Keys hold float32 scores.
        most = _LAYERS if scores.dtype == torch.float32 else len(scores)
        order = asking.argsort(stable=True)
        arranged = asking[order]
        first, last = torch.searchsorted(arranged, arranged), torch.searchsorted(arranged, arranged, right=True)
        ends = torch.searchsorted(arranged, torch.tensor([band.stop for band in bands], device=asking.device)).tolist()
        for band, start, stop in zip(bands, [0, *ends], ends, strict=False):
            own = order[start:stop]
            places = torch.arange(start, stop, device=asking.device) - first[start:stop]
            few = (last - first)[start:stop] <= most
            self._many[band.start] = [
                _Many(int(asking[pairs[0]]) - band.start, pairs, right[pairs], scores[pairs])
                for pairs in own[~few].split(asking[own[~few]].unique_consecutive(return_counts=True)[1].tolist())
                if len(pairs)
            ]
            own, places = own[few], places[few]
            sizes = places.bincount().tolist()
            for pairs in own[places.argsort(stable=True)].split(sizes) if sizes else []:
                rows = asking[pairs] - band.start
                whole = len(rows) == band.stop - band.start
                self._layers[band.start].append(_Layer(None if whole else rows, pairs, right[pairs], scores[pairs]))

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
            self.before[layer.pairs] += before.long()
            here = ((layer.right >= candidates.start) & (layer.right < candidates.stop)).nonzero()[:, 0]
            if len(here):
                index = torch.arange(candidates.start, candidates.stop, device=tile.device)
                equal = scores[here] == layer.score[here, None]
                lower = index < layer.right[here, None]
                self.before[layer.pairs[here]] += (equal & lower).sum(dim=1)
        for many in self._many[asking.start]:
            others = order_keys(tile[many.row][None].contiguous(), candidates.start)[0]
            standing = torch.searchsorted(many.keys, others).bincount(minlength=len(many.keys) + 1)
            self.before[many.pairs] += standing.flip(0).cumsum(0).flip(0)[1:]


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


class _Many:
    """An asker with many right answers: the keys of these, in rising order."""

    def __init__(self, row: int, pairs: Tensor, right: Tensor, scores: Tensor) -> None:
        self.row = row
        keys = torch.stack(
            [order_keys(score[None, None], int(own))[0, 0] for score, own in zip(scores, right, strict=True)]
        )
        self.keys, order = keys.sort()
        self.pairs = pairs[order]


def _padded(rows: Tensor, side: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(side - len(rows), rows.shape[1])])


def _bands(total: int, side: int) -> list[slice]:
    return [slice(start, min(start + side, total)) for start in range(0, total, side)]


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
