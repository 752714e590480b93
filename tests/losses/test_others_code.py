"""Losses agree with other libraries, in float64; comments say what their calls need."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit import losses
from tests.losses.oracles import features

CLASSES = torch.tensor([0, 1, 2, 0, 3, 1, 4, 5, 0, 3, 6, 2])
G = len(CLASSES)


def along_the_sphere(gradient: Tensor, features: Tensor) -> Tensor:
    """Return the part of the gradient along the sphere: other libraries normalize the features once more."""
    return gradient - (gradient * features).sum(dim=1, keepdim=True) * features


def assert_same(ours: Tensor, theirs: Tensor, leaves: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    mine = torch.autograd.grad(ours, leaves, retain_graph=True)
    theirs_too = torch.autograd.grad(theirs, leaves)
    for leaf, one, other in zip(leaves, mine, theirs_too, strict=True):
        torch.testing.assert_close(along_the_sphere(one, leaf), along_the_sphere(other, leaf), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("temperature", [0.5, 0.07])
def test_ntxent_equals_lightlys(temperature: float) -> None:
    from lightly.loss import NTXentLoss

    image, text = features(G, 6)
    assert_same(losses.ntxent(image, text, 1 / temperature), NTXentLoss(temperature)(image, text), (image, text))


def test_ntxent_equals_pytorch_metric_learnings() -> None:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    image, text = features(G, 6)
    theirs = SelfSupervisedLoss(NTXentLoss(0.1), symmetric=True)(image, text)
    assert_same(losses.ntxent(image, text, 10.0), theirs, (image, text))


def test_infonce_with_classes_equals_pytorch_metric_learnings_supervised_form() -> None:
    from pytorch_metric_learning.losses import SupConLoss

    image, text = features(G, 6)
    # Another tensor for the references' labels: of the same one the diagonal is dropped.
    theirs = SupConLoss(0.1)
    both = theirs(image, CLASSES, ref_emb=text, ref_labels=CLASSES.clone())
    both = (both + theirs(text, CLASSES, ref_emb=image, ref_labels=CLASSES.clone())) / 2
    ours = losses.infonce(image, text, 10.0, image_ids=CLASSES, caption_ids=CLASSES)
    assert_same(ours, both, (image, text))


def test_supcon_equals_pytorch_metric_learnings() -> None:
    from pytorch_metric_learning.losses import SupConLoss

    image, text = features(G, 6)
    theirs = SupConLoss(0.1)(torch.cat([image, text]), torch.cat([CLASSES, CLASSES]))
    ours = losses.supcon(image, text, 10.0, image_ids=CLASSES, caption_ids=CLASSES)
    assert_same(ours, theirs, (image, text))


def test_dcl_equals_lightlys() -> None:
    from lightly.loss import DCLLoss

    image, text = features(G, 6)
    assert_same(losses.dcl(image, text, 1 / 0.1), DCLLoss(temperature=0.1)(image, text), (image, text))


def test_label_smoothing_equals_torchs() -> None:
    image, text = features(G, 6)
    logits, labels = 10 * image @ text.T, torch.arange(G)
    theirs = sum(F.cross_entropy(own, labels, label_smoothing=0.1) for own in (logits, logits.T)) / 2
    assert_same(losses.infonce(image, text, 10.0, label_smoothing=0.1), theirs, (image, text))


def test_label_smoothing_over_what_is_left() -> None:
    image, text = features(G, 6)
    left = (CLASSES[:, None] != CLASSES) | torch.eye(G, dtype=torch.bool)
    logits = (10 * image @ text.T).masked_fill(~left, -torch.inf)
    theirs = torch.zeros(())
    for own in (logits, logits.T):
        probabilities = own.log_softmax(dim=1)
        spread = torch.where(left, probabilities, 0).sum(dim=1) / left.sum(dim=1)
        theirs = theirs - (0.8 * probabilities.diagonal() + 0.2 * spread).mean() / 2
    ids = {"image_ids": CLASSES, "caption_ids": CLASSES, "duplicates": "ignore"}
    assert_same(losses.infonce(image, text, 10.0, label_smoothing=0.2, **ids), theirs, (image, text))


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("mining", ["all", "semihard"])
def test_triplets_equal_pytorch_metric_learnings(mining: str, distance: str) -> None:
    from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import TripletMarginMiner

    image, text = features(G, 6)
    measure = CosineSimilarity() if distance == "cosine" else LpDistance()
    miner = TripletMarginMiner(0.3, mining, distance=measure)
    theirs = TripletMarginLoss(0.3, distance=measure)
    ours = losses.triplet(
        image, text, margin=0.3, mining=mining, distance=distance, image_ids=CLASSES, caption_ids=CLASSES
    )
    # Their mean is over each direction's violations by itself; ours over all of them.
    total, number = torch.zeros(()), 0
    for x, y in ((image, text), (text, image)):
        found = miner(x, CLASSES, y, CLASSES.clone())
        violating = theirs(x, CLASSES, found, y, CLASSES.clone())
        similar = x @ y.T
        apart = 1 - similar if distance == "cosine" else torch.cdist(x, y)
        count = int((0.3 + apart[found[0], found[1]] - apart[found[0], found[2]] > 0).sum())
        total, number = total + violating * count, number + count
    assert_same(ours, total / number, (image, text))


def test_hard_triplets_equal_sentence_transformers() -> None:
    """Batch hard over one set of features with labels."""
    from sentence_transformers.sentence_transformer.losses import BatchHardTripletLoss

    image, _ = features(G, 6)
    labels = torch.arange(G) % 4  # each class with a negative and another positive
    theirs = BatchHardTripletLoss.batch_hard_triplet_loss  # unbound: it only needs a margin and a distance

    class Own:
        triplet_margin = 0.5
        distance_metric = staticmethod(lambda x: 1 - x @ x.T)
        get_anchor_positive_triplet_mask = staticmethod(BatchHardTripletLoss.get_anchor_positive_triplet_mask)
        get_anchor_negative_triplet_mask = staticmethod(BatchHardTripletLoss.get_anchor_negative_triplet_mask)

    expected = theirs(Own(), labels, image)
    ours = losses.triplet(image, image, margin=0.5, mining="hard", image_ids=labels, caption_ids=labels)
    assert_same(ours, expected, (image,))


def test_contrastive_equals_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.losses import ContrastiveLoss

    class Own(torch.nn.Module):
        """Features that are there already, in the place of a model."""

        def forward(self, chosen: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"sentence_embedding": chosen["features"]}

    image, text = features(G, 6)
    same = CLASSES[:, None] == CLASSES
    expected = torch.zeros(())
    for mask, label in ((same, 1), (~same, 0)):
        rows, columns = mask.nonzero().T
        pairs = [{"features": image[rows]}, {"features": text[columns]}]
        expected = expected + ContrastiveLoss(Own(), margin=0.5)(pairs, torch.full((len(rows),), label))
    ours = losses.contrastive(image, text, margin=0.5, image_ids=CLASSES, caption_ids=CLASSES)
    assert_same(ours, expected, (image, text))


def test_distillation_equals_open_clips() -> None:
    from open_clip.loss import DistillClipLoss

    image, text = features(G, 6)
    teacher = [own.detach() for own in features(G, 9, seed=4)]
    _, theirs = DistillClipLoss()(image, text, 10.0, *teacher, 50.0)
    assert_same(losses.distillation(image, text, 10.0, *teacher, 50.0), theirs, (image, text))


def test_symmetric_infonce_equals_sentence_transformers() -> None:
    """Per direction; their "joint" partition is another loss."""
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesSymmetricRankingLoss
    from sentence_transformers.util import cos_sim

    image, text = features(G, 6)
    theirs = MultipleNegativesSymmetricRankingLoss(torch.nn.Identity(), scale=20.0, similarity_fct=cos_sim)
    expected = theirs.compute_loss_from_embeddings([image, text], None)
    assert_same(losses.infonce(image, text, 20.0), expected, (image, text))
