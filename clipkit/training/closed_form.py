"""Initial projections by canonical correlation analysis (CCA) of all training pairs, computed in closed form."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.embedding.shared import encode_shared, evaluating
from clipkit.errors import DataError
from clipkit.metrics.canonical_correlation import CanonicalCorrelation, PairSums, canonical_correlation
from clipkit.models import DualEncoder, Tower
from clipkit.models.encode import encode_images, encode_strings, trunk_features
from clipkit.models.layers import Layered, columns, set_coordinates
from clipkit.models.projections import keep_outputs, linear_of
from clipkit.processes import Processes
from clipkit.recipe.layers import shortened
from clipkit.training.folder.checkpoint import checkpoint_of, read_tensors
from clipkit.training.folder.learned import MODEL
from clipkit.training.folder.resume import StartPoint
from clipkit.training.folder.run_folder import RunFolder
from clipkit.training.folder.run_log import RunLog
from clipkit.training.inputs import TowerInputs
from clipkit.training.layer_choice import Choice, Comparison, HeldOut
from clipkit.training.measures.measurement import Measurement
from clipkit.training.plan import Plan

_IMAGES, _ROWS = 512, 4096
"""Number of images whose pairs are summed in one step, and number of rows that are mapped in one step."""
_MOST_HELD_OUT = 1000
_FEWEST = 8
_SHOWN = {"image_retrieval_recall@1": "text → image R@1", "text_retrieval_recall@1": "image → text R@1"}


def closed_form_start(
    plan: Plan, inputs: TowerInputs, start: StartPoint, folder: RunFolder, log: RunLog
) -> dict[str, Any] | None:
    """Set the initial projections by canonical correlation analysis (CCA) if the recipe selects CCA.

    `model.start: cca` selects CCA, and `auto` selects it in some cases (see `Recipe.start`).

    Each trunk then returns canonical coordinates: the linear combinations of its features that CCA found. Stored
    outputs of trunks are converted too. A resumed run restores the coordinates from its checkpoint.

    Args:
        plan: the plan of the run; its model is changed in place.
        inputs: the inputs of the towers, in which stored outputs of frozen trunks are replaced.
        start: the beginning of the run, or the checkpoint from which the run resumes.
        folder: the run folder, which is only read.
        log: gets a line about the chosen layers, ridge and width.

    Returns:
        The chosen settings and their retrieval metrics, for results.json; None without CCA.

    Raises:
        DataError: there are too few images.
    """
    if plan.recipe.start != "cca":
        return None
    model = plan.model
    facts: dict[str, Any]
    of_all = layers_of(model)
    if start.saved is None:
        wide = {side: _wide_features(side, plan, inputs) for side in ("image", "text")}
        facts = _fit(plan, inputs, wide["image"], wide["text"], log)
    else:
        facts = start.saved["closed_form"]
        saved = read_tensors(checkpoint_of(folder.checkpoints, start.step), MODEL)
        for side, tower in model.sides.items():
            names = (f"{side}.trunk.coordinates.{name}" for name in ("mean", "matrix"))
            _set_coordinates(tower, facts["chosen"][f"{side}_layers"], *(saved[name] for name in names))
            linear = next(name for name, module in tower.named_modules() if module is linear_of(tower.head))
            keep_outputs(tower.head, len(saved[f"{side}.{linear}.weight"]))
    inputs.stores.update(coordinates_of(model, inputs.stores, of_all))
    return facts


def layers_of(model: DualEncoder) -> dict[str, tuple[Sequence[str], Sequence[int]]]:
    """Return the layer names and widths of each trunk that concatenates several layers, by side (`image` or `text`)."""
    trunks = {side: tower.trunk for side, tower in model.sides.items()}
    return {side: (trunk.layers, trunk.widths) for side, trunk in trunks.items() if isinstance(trunk, Layered)}


def coordinates_of(
    model: DualEncoder, outputs: Mapping[str, Tensor], layers: Mapping[str, tuple[Sequence[str], Sequence[int]]]
) -> dict[str, Tensor]:
    """Convert stored outputs of frozen trunks to canonical coordinates (CCA).

    Args:
        model: the model, after `closed_form_start`.
        outputs: outputs of the trunks with all layers, by feature name, e.g. `image_features`.
        layers: result of `layers_of` before layers were chosen.

    Returns:
        The coordinates by feature name, computed only from the chosen layers.
    """
    made = {}
    for name, rows in outputs.items():
        side = "image" if name == "image_features" else "text"
        trunk = model.sides[side].trunk
        assert isinstance(trunk, Layered)
        kept, coordinates = columns(*layers[side], trunk.layers), trunk.get_submodule("coordinates")
        made[name] = torch.cat([coordinates(part[:, kept]) for part in rows.split(_ROWS)])
    return made


def measure_start(facts: dict[str, Any] | None, measurements: Sequence[Measurement], log: RunLog) -> None:
    """Evaluate the initial projections from CCA, and store the validation metrics in `facts["validation"]`.

    Nothing happens if `facts` is None or already contains these metrics.
    """
    if facts is None or "validation" in facts:
        return
    facts["validation"] = {name: value for one in measurements for name, value in one.figures().items()}
    if any(name in facts["validation"] for name in _SHOWN):
        log.info(f"closed-form start, on the validation pairs: {_words(facts['validation'])}")


def report_worse_than_start(
    facts: Mapping[str, Any] | None, metric: str, value: float | None, log_line: Callable[[str], None]
) -> None:
    """Log a line if the trained model has a lower metric than its initial projections by CCA had.

    >>> report_worse_than_start({"validation": {"mean_recall": 0.376}}, "mean_recall", 0.324, print)
    training lowered mean_recall from 0.3760 (closed-form start) to 0.3240; use fewer train.epochs or a \
lower optim.lr
    """
    start = None if facts is None else facts.get("validation", {}).get(metric)
    if start is not None and value is not None and round(value, 4) < round(start, 4):
        log_line(
            f"training lowered {metric} from {start:.4f} (closed-form start) to {value:.4f}; use fewer "
            "train.epochs or a lower optim.lr"
        )


def _fit(
    plan: Plan, inputs: TowerInputs, image: Float[Tensor, "N V"], text: Float[Tensor, "M W"], log: RunLog
) -> dict[str, Any]:
    """Choose CCA settings on held-out pairs, fit the projections on all pairs, and set them in the model.

    Returns:
        The chosen and all compared settings with their metrics, for results.json.
    """
    model, processes = plan.model, plan.processes
    of_caption = torch.from_numpy(plan.data.train.pairs.image_of_caption).long()
    fitted, held_out = parts_of(len(image), inputs.bad, plan.recipe.train.seed, plan.data.train.name)
    sums_of_held_out = pair_sums(image, text, of_caption, held_out, processes)
    sums_of_fitted = pair_sums(image, text, of_caption, fitted, processes)
    trunks = {side: tower.trunk for side, tower in model.sides.items()}
    image_trunk, text_trunk = trunks["image"], trunks["text"]
    assert isinstance(image_trunk, Layered)
    assert isinstance(text_trunk, Layered)
    head = linear_of(model.image.head)
    result: list[Any] = []
    if processes.is_main:
        captions, position = _captions_of(of_caption, held_out)
        measured = HeldOut(image[held_out.to(image.device)].cpu(), text[captions.to(text.device)].cpu(), position)
        comparison = Comparison(sums_of_fitted.cpu(), measured, image_trunk, text_trunk, head.out_features)
        section = plan.recipe.model
        chosen = comparison.best(section.image.layers in (None, "auto"), section.text.layers in (None, "auto"))
        everything = sums_of_fitted.plus(sums_of_held_out).cpu()
        everything = everything.of(*comparison.columns(chosen.image_layers, chosen.text_layers))
        blocks = comparison.widths(chosen.image_layers, chosen.text_layers)
        ridge, count = chosen.ridge, head.in_features
        solution = canonical_correlation(everything, ridge, ridge, count, x_blocks=blocks[0], y_blocks=blocks[1])
        result = [(chosen, solution, [choice.row for choice in comparison.choices])]
    chosen, solution, compared = processes.gather_objects(result)[0][0]
    _set_projections(model, chosen, solution)
    if plan.recipe.model.embed_dim is None:  # later outputs are 0 in both towers, so training could not change them
        for tower in (model.image, model.text):
            keep_outputs(tower.head, chosen.width)
    if plan.learned.average is not None:
        plan.learned.average.load(dict(model.named_parameters()))
    facts = {"method": "cca", "chosen": chosen.row, "compared": compared, "held_out_images": len(held_out)}
    log.info(
        f"closed-form start, chosen on {len(held_out)} held-out training images: image layers "
        f"{shortened(chosen.image_layers)}; text layers {shortened(chosen.text_layers)}; ridge {chosen.ridge:g}, "
        f"{chosen.width} coordinates: {_words(chosen.metrics)}"
    )
    return facts


def _words(metrics: dict[str, float]) -> str:
    return ", ".join(f"{label} {100 * metrics[name]:.1f} %" for name, label in _SHOWN.items())


def parts_of(images: int, bad: Collection[int], seed: int, name: str) -> tuple[Int[Tensor, " F"], Int[Tensor, " H"]]:
    """Split the readable images into a large part for fitting and a small held-out part for choosing settings.

    The held-out part has about a sixth of the images, at most 1,000.

    Args:
        bad: positions of unreadable images, which are in neither part.
        name: name of the data, for the error message.

    Returns:
        The positions of the images in both parts, ascending.

    Raises:
        DataError: there are too few readable images.
    """
    good = torch.tensor([row for row in range(images) if row not in bad])
    if len(good) < _FEWEST:
        raise DataError(
            f"{name}: has {len(good)} readable images, but model.start: cca needs at least {_FEWEST}; use more images, "
            "or set model.start: random"
        )
    order = good[torch.randperm(len(good), generator=torch.Generator().manual_seed(seed))]
    count = min(_MOST_HELD_OUT, len(good) // 6 + 1)
    return order[count:].sort().values, order[:count].sort().values


def pair_sums(
    image: Float[Tensor, "N V"],
    text: Float[Tensor, "M W"],
    image_of_caption: Int[Tensor, " M"],
    images: Int[Tensor, " n"],
    processes: Processes,
) -> PairSums:
    """Return the sums over image-caption pairs from which means and covariances of features are computed.

    The processes share the work, and each process returns the total.

    Args:
        image: features of all images.
        text: features of all captions.
        image_of_caption: position of each caption's image.
        images: positions of the images whose pairs are summed.
    """
    sums = PairSums.zeros(image.shape[1], text.shape[1], image.device)
    share = images[processes.share(len(images))]
    captions, position = _captions_of(image_of_caption, share)
    for start in range(0, len(share), _IMAGES):
        here = (position >= start) & (position < start + _IMAGES)
        rows = share[start : start + _IMAGES].to(image.device)
        sums.add(image[rows], text[captions[here].to(text.device)], (position[here] - start).to(image.device))
    return PairSums(*(processes.sum(one) for one in sums.tensors))


def _captions_of(image_of_caption: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions of all captions of the given images, and the index of each caption's image in `images`."""
    position = torch.full((int(max(image_of_caption.max(), images.max())) + 1,), -1) if len(images) else None
    if position is None:
        return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    position[images] = torch.arange(len(images))
    captions = (position[image_of_caption] >= 0).nonzero()[:, 0]
    return captions, position[image_of_caption[captions]]


def _set_projections(model: DualEncoder, chosen: Choice, solution: CanonicalCorrelation) -> None:
    """Make the trunks return canonical coordinates (CCA), and the projections keep the first `chosen.width`.

    The trunks multiply each coordinate by its canonical correlation.
    """
    # The trunks apply the weights, not the projections, so that training changes the projections of weakly correlated
    # coordinates less.
    weights = solution.correlations
    _set_coordinates(model.image, chosen.image_layers, solution.x_mean, solution.x_map * weights)
    _set_coordinates(model.text, chosen.text_layers, solution.y_mean, solution.y_map * weights)
    for tower in (model.image, model.text):
        linear = linear_of(tower.head)
        with torch.no_grad():
            torch.nn.init.eye_(linear.weight)
            linear.weight[chosen.width :] = 0


def _set_coordinates(tower: Tower, layers: Sequence[str], mean: Tensor, matrix: Tensor) -> None:
    """Make a trunk return canonical coordinates (CCA), computed from the given layers.

    The coordinates are padded with zeros to the input width of the projection.
    """
    assert isinstance(tower.trunk, Layered)
    tower.trunk.choose(layers)
    missing = linear_of(tower.head).in_features - matrix.shape[1]  # the chosen layers may have fewer coordinates
    set_coordinates(tower.trunk, mean, F.pad(matrix, (0, missing)))


def _wide_features(side: str, plan: Plan, inputs: TowerInputs) -> Float[Tensor, "N W"]:
    """Return the trunk outputs for all training images or all captions.

    Stored outputs are used if they exist. Otherwise, the trunk runs on all data, and unreadable images are added to
    `inputs.bad`.
    """
    name = f"{side}_features"
    if name in inputs.stores:
        return inputs.stores[name]
    model, pairs, show = plan.model, plan.data.train.pairs, plan.processes.is_main
    bad: dict[int, str] = {}
    with evaluating(model):
        if side == "text":
            return encode_shared(
                pairs.captions,
                lambda texts: encode_strings(model.text, texts, trunk_features, None, model.device, show),
                plan.processes,
            )
        wide = encode_shared(
            pairs.images,
            lambda images: encode_images(model.image, images, trunk_features, None, model.device, show, bad),
            plan.processes,
        )
    first = plan.processes.share(len(pairs.images)).start
    for reasons in plan.processes.gather_objects({first + row: reason for row, reason in bad.items()}):
        inputs.bad = {**inputs.bad, **reasons}
    return wide
