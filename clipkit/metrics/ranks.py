"""Ranks of correct answers in image-text retrieval, computed without storing the score matrix.

A query is an image or a text. Its candidates are all texts or all images. Its correct answers are the candidates that
match the query.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.metrics.arrays import takes_arrays
from clipkit.metrics.order import of_keys, order_keys

# Rows and columns of a tile of the score matrix. The size is fixed, because matrix products of other shapes may be
# rounded differently, so that metrics would depend on it. Tiles of this size fit into the cache of a CPU: comparisons
# then take a tenth of the time of the product.
_SIDE = 1024
# For a query with at most this many correct answers, candidates are compared with each correct answer separately.
_LAYERS = 32

# Scores and indices of the K best candidates of Q queries.
Answers = tuple[Float[Tensor, "Q K"], Int[Tensor, "Q K"]]


@dataclass(frozen=True)
class RetrievalRanks:
    """Ranks of all matching (image, text) pairs in retrieval.

    A rank is 1 + the number of candidates with a higher score + the number of candidates with an equal score and a
    lower index.
    """

    pairs: Int[Tensor, "P 2"]
    """(image, text) indices of the matching pairs."""
    among_images: Int[Tensor, " P"]
    """Rank of the pair's image among all images, with its text as the query."""
    among_texts: Int[Tensor, " P"]
    """Rank of the pair's text among all texts, with its image as the query."""
    scores: Float[Tensor, " P"]
    images: int
    texts: int

    @property
    def of_texts(self) -> Int[Tensor, " M"]:
        """For each text, the best rank of its images; 0 for a text without images."""
        return _best(self.pairs[:, 1], self.among_images, self.texts)

    @property
    def of_images(self) -> Int[Tensor, " N"]:
        """For each image, the best rank of its texts; 0 for an image without texts."""
        return _best(self.pairs[:, 0], self.among_texts, self.images)

    @property
    def precision_of_texts(self) -> Float[Tensor, " M"]:
        """For each text, the average precision at R of the ranked images, where R is the number of its images.

        The mean over the texts is MAP@R (Musgrave et al. 2020).
        """
        return _average_precision_at_r(self.pairs[:, 1], self.among_images, self.texts)

    @property
    def precision_of_images(self) -> Float[Tensor, " N"]:
        """For each image, the average precision at R of the ranked texts, where R is the number of its texts."""
        return _average_precision_at_r(self.pairs[:, 0], self.among_texts, self.images)


@takes_arrays
def retrieval_ranks(
    image_features: Float[Tensor, "N D"],
    text_features: Float[Tensor, "M D"],
    image_of_text: Int[Tensor, " M"] | Int[Tensor, "P 2"],
    *,
    on_scores: Callable[[int], object] | None = None,
    part: tuple[int, int] = (0, 1),
    summed: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> RetrievalRanks:
    """Return the ranks of all P matching (image, text) pairs in image and text retrieval.

    Besides the features, the memory is O(N + M + P). Scores are float32 (float64 for float64 features). Equal
    features have bitwise equal scores.

    Args:
        image_features, text_features: unit length.
        image_of_text: index of each text's image; or (image, text) pairs, if a text belongs to several images.
        on_scores: function for a progress bar, called with the number of newly computed scores.
        part: (i, n) to compute part i of n, counted from 0, if n processes divide the work.
        summed: function that returns the sum of a (P,) tensor over all n processes.

    Raises:
        ValueError: `image_of_text` does not fit the features.

    Example:
        >>> ranks = retrieval_ranks(torch.eye(3), torch.eye(3)[[0, 2]], torch.tensor([0, 1]))
        >>> ranks.of_texts.tolist(), ranks.of_images.tolist()
        ([1, 3], [1, 2, 0])
    """
    pairs = right_pairs(image_of_text)
    _check_fit(pairs, len(image_features), len(text_features), one_per_text=image_of_text.ndim == 1)
    tiles = Tiles(image_features, text_features)
    image, text = pairs.T.to(image_features.device)
    scores = tiles.scores_of(image, text)
    from_texts = _Queries(text, image, scores, tiles.texts)
    from_images = _Queries(image, text, scores, tiles.images)
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


@takes_arrays
def similarity(x: Float[Tensor, "R D"], y: Float[Tensor, "C D"]) -> Float[Tensor, "R C"]:
    """Return the scores x · y of all rows of x with all rows of y, rounded as in `retrieval_ranks`."""
    tiles = Tiles(x, y)
    scores = tiles.dtype_of(x).new_empty(len(x), len(y))
    for rows in tiles.images:
        for columns in tiles.texts:
            scores[rows, columns] = tiles(rows, columns)
    return scores


@takes_arrays
def top_answers(
    image_features: Float[Tensor, "N D"], text_features: Float[Tensor, "M D"], count: int
) -> tuple[Answers, Answers]:
    """Return the images with the highest scores for each text, and the texts with the highest scores for each image.

    Args:
        image_features, text_features: unit length.
        count: number of results per query, K; fewer if there are fewer images or texts.

    Returns:
        For each text: (M, K) scores and indices of images. For each image: (N, K) scores and indices of texts.
    """
    tiles = Tiles(image_features.float(), text_features.float())
    least = torch.iinfo(torch.int64).min
    of_texts = image_features.new_full((len(text_features), min(count, len(image_features))), least, dtype=torch.int64)
    of_images = image_features.new_full((len(image_features), min(count, len(text_features))), least, dtype=torch.int64)
    for rows in tiles.images:
        for columns in tiles.texts:
            tile = tiles(rows, columns)
            for best, queries, scores, first in (
                (of_images, rows, tile, columns.start),
                (of_texts, columns, tile.T.contiguous(), rows.start),
            ):
                candidates = torch.cat([best[queries], order_keys(scores, first)], dim=1)
                best[queries] = candidates.topk(best.shape[1], dim=1).values
    return of_keys(of_texts), of_keys(of_images)


def right_pairs(image_of_text: Int[Tensor, " M"] | Int[Tensor, "P 2"]) -> Int[Tensor, "P 2"]:
    """Return all matching (image, text) pairs, without repetitions.

    Args:
        image_of_text: index of each text's image; or (image, text) pairs.
    """
    if image_of_text.ndim == 2:
        return image_of_text.cpu().unique(dim=0)
    return torch.stack([image_of_text.cpu(), torch.arange(len(image_of_text))], dim=1)


def _check_fit(pairs: Int[Tensor, "P 2"], images: int, texts: int, one_per_text: bool) -> None:
    """Raise ValueError if an index of a pair is out of range, or, with `one_per_text`, if a text has no pair."""
    if one_per_text and len(pairs) != texts:
        raise ValueError(f"image_of_text has {len(pairs)} entries for {texts} texts; give one image per text")
    if not len(pairs):
        raise ValueError("image_of_text is empty; give at least one matching pair")
    for kind, count, rows in (("image", images, pairs[:, 0]), ("text", texts, pairs[:, 1])):
        invalid = rows[(rows < 0) | (rows >= count)]
        if len(invalid):
            raise ValueError(
                f"image_of_text refers to {kind} {int(invalid[0])}, but there are {count} {kind}s; give indices from 0 "
                f"to {count - 1}"
            )


class Tiles:
    """Score matrix of images (rows) and texts (columns), computed one tile at a time.

    Each tile overwrites the previous one. All tiles are products of matrices of the same shape, so that equal features
    have bitwise equal scores.
    """

    def __init__(self, images: Float[Tensor, "N D"], texts: Float[Tensor, "M D"]) -> None:
        self._images, self._texts = self.dtype_of(images), self.dtype_of(texts)
        # With few features, all tiles are smaller.
        self.side = side = min(_SIDE, 1 << max(len(images), len(texts), 2).bit_length())
        self.images, self.texts = _bands(len(images), side), _bands(len(texts), side)
        # The last rows and columns are padded with zeros to a full tile. A product of another shape may be rounded
        # differently, so that equal features would have different scores.
        self._padded = {id(x): _padded(x[side * (len(x) // side) :], side) for x in (self._images, self._texts)}
        self._scores = self._images.new_empty(side, side)
        self.compared = self._images.new_empty(side, side)
        """Memory for the results of comparisons in a tile."""

    @staticmethod
    def dtype_of(features: Tensor) -> Tensor:
        """Convert features to the type of the scores: float64 if they are float64, otherwise float32."""
        return features.to(torch.promote_types(features.dtype, torch.float32))

    def __call__(self, rows: slice, columns: slice) -> Float[Tensor, "h w"]:
        torch.mm(self._band(self._images, rows), self._band(self._texts, columns).T, out=self._scores)
        return self._scores[: rows.stop - rows.start, : columns.stop - columns.start]

    def _band(self, features: Tensor, band: slice) -> Tensor:
        return features[band] if band.stop - band.start == self.side else self._padded[id(features)]

    def scores_of(self, image: Int[Tensor, " P"], text: Int[Tensor, " P"]) -> Float[Tensor, " P"]:
        """Return the scores of P (image, text) pairs, rounded as in the tiles."""
        scores = self._images.new_empty(len(image))
        tile_of_pair = (image // self.side) * len(self.texts) + text // self.side
        order = tile_of_pair.argsort()
        numbers, counts = tile_of_pair[order].unique_consecutive(return_counts=True)
        for number, chosen in zip(numbers.tolist(), order.split(counts.tolist()), strict=True):
            rows, columns = self.images[number // len(self.texts)], self.texts[number % len(self.texts)]
            scores[chosen] = self(rows, columns)[image[chosen] - rows.start, text[chosen] - columns.start]
        return scores


class _Queries:
    """For each (query, correct answer) pair, the number of candidates that rank before the correct answer.

    Args:
        queries, correct, scores: query, correct answer (index among the candidates) and score of each pair.
        bands: slices into which the tiles divide the queries.
    """

    def __init__(self, queries: Tensor, correct: Tensor, scores: Tensor, bands: list[slice]) -> None:
        self.before = torch.zeros_like(queries)
        """Number of candidates that rank before the correct answer of each pair, in all tiles so far."""
        # The pairs of a tile's queries are split into layers with at most one pair per query, so that the tile is
        # compared only once per layer. For queries with many correct answers, candidates are counted by binary search.
        self._layers: dict[int, list[_Layer]] = {band.start: [] for band in bands}
        self._many: dict[int, list[_Many]] = {band.start: [] for band in bands}
        # The binary search uses integer keys, which exist for float32 scores only.
        most = _LAYERS if scores.dtype == torch.float32 else len(scores)
        order = queries.argsort(stable=True)
        ordered = queries[order]
        first, last = torch.searchsorted(ordered, ordered), torch.searchsorted(ordered, ordered, right=True)
        ends = torch.searchsorted(ordered, torch.tensor([band.stop for band in bands], device=queries.device)).tolist()
        for band, start, stop in zip(bands, [0, *ends], ends, strict=False):
            in_band = order[start:stop]
            # Index of each pair among the pairs of its query: the number of its layer.
            number = torch.arange(start, stop, device=queries.device) - first[start:stop]
            few = (last - first)[start:stop] <= most
            many = in_band[~few]
            self._many[band.start] = [
                _Many(int(queries[pairs[0]]) - band.start, pairs, correct[pairs], scores[pairs])
                for pairs in many.split(queries[many].unique_consecutive(return_counts=True)[1].tolist())
                if len(pairs)
            ]
            in_band, number = in_band[few], number[few]
            sizes = number.bincount().tolist()
            for pairs in in_band[number.argsort(stable=True)].split(sizes) if sizes else []:
                rows = queries[pairs] - band.start
                whole = len(rows) == band.stop - band.start
                self._layers[band.start].append(_Layer(None if whole else rows, pairs, correct[pairs], scores[pairs]))

    def count(self, tile: Tensor, compared: Tensor, queries: slice, candidates: slice) -> None:
        """Count the candidates in a tile of scores that rank before the correct answers.

        Args:
            tile: (queries, candidates) scores.
            compared: buffer of the same shape for the results of comparisons.
            queries, candidates: rows and columns of the tile in the score matrix.
        """
        for layer in self._layers[queries.start]:
            # A candidate with an equal score ranks before the correct answer if its index is lower.
            limit = torch.where(layer.correct >= candidates.stop, layer.just_below, layer.score)[:, None]
            if layer.rows is None:
                scores = tile
                before = torch.gt(scores, limit, out=compared).sum(dim=1)
            else:
                scores = tile[layer.rows]
                before = (scores > limit).sum(dim=1, dtype=torch.int32)
            self.before[layer.pairs] += before.long()
            inside = ((layer.correct >= candidates.start) & (layer.correct < candidates.stop)).nonzero()[:, 0]
            if len(inside):
                index = torch.arange(candidates.start, candidates.stop, device=tile.device)
                equal = scores[inside] == layer.score[inside, None]
                lower = index < layer.correct[inside, None]
                self.before[layer.pairs[inside]] += (equal & lower).sum(dim=1)
        for many in self._many[queries.start]:
            keys = order_keys(tile[many.row][None].contiguous(), candidates.start)[0]
            counts = torch.searchsorted(many.keys, keys).bincount(minlength=len(many.keys) + 1)
            self.before[many.pairs] += counts.flip(0).cumsum(0).flip(0)[1:]


@dataclass
class _Layer:
    rows: Tensor | None
    """Rows of the tile, one per pair; None: all rows, in order."""
    pairs: Tensor
    correct: Tensor
    score: Tensor

    def __post_init__(self) -> None:
        # x > just_below is the same as x >= score.
        self.just_below = torch.nextafter(self.score, torch.full_like(self.score, -torch.inf))


class _Many:
    """Query with many correct answers, sorted from the last rank to the first for binary search."""

    def __init__(self, row: int, pairs: Tensor, correct: Tensor, scores: Tensor) -> None:
        self.row = row
        keys = torch.stack(
            [order_keys(score[None, None], int(index))[0, 0] for score, index in zip(scores, correct, strict=True)]
        )
        self.keys, order = keys.sort()
        self.pairs = pairs[order]


def _padded(rows: Tensor, side: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(side - len(rows), rows.shape[1])])


def _bands(total: int, side: int) -> list[slice]:
    return [slice(start, min(start + side, total)) for start in range(0, total, side)]


def _best(queries: Tensor, ranks: Tensor, count: int) -> Tensor:
    best = torch.zeros(count, dtype=ranks.dtype)
    return best.scatter_reduce(0, queries, ranks, "amin", include_self=False)


def _average_precision_at_r(queries: Tensor, ranks: Tensor, count: int) -> Tensor:
    order = ranks.argsort(stable=True)
    order = order[queries[order].argsort(stable=True)]
    queries, ranks = queries[order], ranks[order]
    relevant = queries.bincount(minlength=count)
    retrieved = torch.arange(1, len(queries) + 1) - torch.searchsorted(queries, queries)
    precision = torch.where(ranks <= relevant[queries], retrieved.double() / ranks, 0.0)
    return torch.zeros(count, dtype=torch.float64).index_add(0, queries, precision) / relevant.clamp(min=1)
