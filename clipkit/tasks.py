"""Names and display formats of evaluation tasks and metrics, without heavy imports.

To add a task, define `TASK` in a new file `clipkit/evaluation/tasks/NAME.py`, and add a row to `TASKS`. For a task
with training data or additional options, write a command in `clipkit/cli/evaluate.py`, and leave `help` and `data` of
the row empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isclose
from typing import Any

from clipkit.findings import counted


@dataclass(frozen=True)
class TaskRow:
    """Names, main metrics and help texts of an evaluation task."""

    title: str
    hub_name: str
    """Task type in the Hub's model index."""
    main_metric: str
    """Metric in a suite's table, unless the dataset specifies another one."""
    headlines: tuple[str, ...]
    """Metrics at the top of a report. A metric that is not in the result is left out."""
    learns: bool = False
    """True if the task needs labeled training data in addition to the evaluated data."""
    help: str = ""
    """Help text of the command `clipkit eval NAME`; empty if `clipkit/cli/evaluate.py` has a function for it."""
    data: str = ""
    """Help text of the option --data of this command."""


TASKS: dict[str, TaskRow] = {
    "retrieval": TaskRow(
        "Image-text retrieval", "image-text-retrieval", "mean_recall",
        ("mean_recall", "image_retrieval_recall@1", "text_retrieval_recall@1"),
    ),
    "zeroshot": TaskRow(
        "Zero-shot classification", "zero-shot-image-classification", "acc1",
        ("acc1", "acc5", "mean_per_class_recall", "mean_average_precision"),
    ),
    "probe": TaskRow("Linear probe", "image-classification", "lp_acc1", ("lp_acc1", "knn_acc1"), learns=True),
    "compositional": TaskRow(
        "Compositional tests", "image-text-matching", "acc", ("text_acc", "image_acc", "acc"),
        help="Evaluate compositional understanding.\n\nIn each test instance, two captions or two images differ "
        "in one detail (hard negatives), and the model must choose the correct one. Examples of such data are "
        "SugarCrepe and Winoground.",
        data="A CSV, JSON or JSONL file, or a folder with one such file per category. The columns are image, caption "
        "and negative_caption (SugarCrepe), optionally with caption2, a second correct caption (SugarCrepe++); or "
        "image_0, image_1, caption_0 and caption_1 (Winoground).",
    ),
    "instances": TaskRow(
        "Instance retrieval", "image-feature-extraction", "instance_recall@1", ("instance_recall@1", "instance_map@r"),
        help="Evaluate instance retrieval.\n\nEach image is a query; the other images with the same label are correct.",
        data="Labeled images, several per label: class folders, a table, shards (WebDataset), or hf:NAME (Hugging "
        "Face Hub).",
    ),
    "landmarks": TaskRow(
        "Landmark retrieval", "image-feature-extraction", "medium_map", ("easy_map", "medium_map", "hard_map"),
        help="Evaluate landmark retrieval (revisited Oxford and Paris).\n\nEach query image is compared with "
        "all gallery images. The data labels gallery images as easy or hard (both are correct) or as junk (ignored).",
        data="A JSON file with three keys. imlist: names of the gallery images. qimlist: names of the query images. "
        "gnd: for each query, three lists of positions in imlist, named easy, hard and junk, and optionally bbx, the "
        "box to which the query image is cropped. If the images are in another folder, append ?images=FOLDER to the "
        "name of the file.",
    ),
    "clustering": TaskRow(
        "Clustering", "image-feature-extraction", "nmi", ("nmi", "ami", "ari"),
        help="Evaluate clustering.\n\nClusters the image features by k-means, without labels, and compares the "
        "clusters with the classes.",
        data="Labeled images: class folders, a table, shards (WebDataset), or hf:NAME (Hugging Face Hub).",
    ),
    "associations": TaskRow(
        "Association tests", "image-text-matching", "jaccard", ("jaccard", "jaccard_5-6", "jaccard_10-12"),
        help="Evaluate association tests (WinoGAViL).\n\nThe model must choose the images that are "
        "associated with a word.",
        data="A JSON or JSONL file whose rows have the fields cue (a word), candidates (images) and associations (the "
        "candidates that are associated with the word). If the images are in another folder, append ?images=FOLDER to "
        "the name of the file.",
    ),
}  # fmt: skip

# Tasks that occur only in results of training runs: title, and task type in the Hub's model index.
_OF_RUNS = {"views": ("Views of images", "image-feature-extraction")}

# Metrics that are neither shares nor ranks.
_COSINES = ("_auc", "_correlation", "_gain_over_random", "_gain_over_center")

# Counts of a result's data, with their nouns.
_COUNTED = {
    "images": "image", "captions": "caption", "instances": "instance", "queries": "query", "classes": "class",
}  # fmt: skip

_METRICS = {
    "acc1": "top-1 accuracy",
    "acc5": "top-5 accuracy",
    "mean_per_class_recall": "mean per-class recall",
    "mean_recall": "mean recall",
    "mean_average_precision": "mean average precision",
    "ece": "calibration error",
    "macro_f1": "macro F1",
    "acc1_worst_group": "top-1 accuracy, worst group",
    "acc5_worst_group": "top-5 accuracy, worst group",
    "image_acc": "image score",
    "text_acc": "text score",
    "text_only_acc": "text-only score",
    "acc": "group score",
    "recall@": "R@",
    "mean_recall@": "mean R@",
    "jaccard": "Jaccard index",
    "jaccard_5-6": "Jaccard index, 5 or 6 candidates",
    "jaccard_10-12": "Jaccard index, 10 or 12 candidates",
    "map@r": "mAP@R",
    "map": "mAP",
    "mp@": "mP@",
    "nmi": "NMI (V-measure)",
    "ami": "adjusted mutual information",
    "ari": "adjusted Rand index",
    "image_alignment": "image alignment",
    "image_uniformity": "image uniformity",
    "text_alignment": "text alignment",
    "text_uniformity": "text uniformity",
    "retention_similarity": "similarity with the pretrained model",
    "retention_acc1": "retained top-1 accuracy",
    "retention_mean_recall": "retained mean recall",
    "median_rank": "median rank",
    "mean_rank": "mean rank",
    "deletion_auc": "deletion AUC",
    "deletion_gain_over_random": "deletion AUC below random maps",
    "deletion_gain_over_center": "deletion AUC below center map",
    "insertion_auc": "insertion AUC",
    "insertion_gain_over_random": "insertion AUC above random maps",
    "insertion_gain_over_center": "insertion AUC above center map",
    "occlusion_correlation": "rank correlation with occlusion",
    "occlusion_correlation_gain_over_center": "rank correlation above center map",
}
_PREFIXES = {
    "image_retrieval_": "text → image ",
    "text_retrieval_": "image → text ",
    "lp_": "linear probe: ",
    "instance_": "image → image ",
    "easy_": "easy: ",
    "medium_": "medium: ",
    "hard_": "hard: ",
    "knn_": "nearest neighbors: ",
    "image_view_": "image view → other view ",
    "text_view_": "text view → caption ",
}


def title_of(task: str) -> str:
    """Return the display title of a task; for an unknown task, the given name."""
    return TASKS[task].title if task in TASKS else _OF_RUNS.get(task, (task, task))[0]


def hub_name_of(task: str) -> str:
    """Return the task type for the Hub's model index; for an unknown task, the given name."""
    return TASKS[task].hub_name if task in TASKS else _OF_RUNS.get(task, (task, task))[1]


def readable(metric: str) -> str:
    """Return a readable name of a metric.

    Example:
        >>> readable("image_retrieval_recall@5")
        'text → image R@5'
    """
    for prefix, words in _PREFIXES.items():
        if metric.startswith(prefix):
            return words + readable(metric.removeprefix(prefix))
    kind, at, k = metric.partition("@")
    return _METRICS.get(metric) or _METRICS.get(kind + at, kind + at) + k


def counts_of(data: Mapping[str, Any]) -> str:
    """Return the numbers of images, captions and classes in the `data` of a result, as text.

    Example:
        >>> counts_of({"name": "dev.csv", "images": 1000, "captions": 5000})
        '1,000 images, 5,000 captions'
    """
    counts = [counted(data[kind], noun) for kind, noun in _COUNTED.items() if data.get(kind)]
    parts = [
        f"{name}: {counts_of(part)}" for name in ("views", "labelled") if isinstance(part := data.get(name), Mapping)
    ]
    return "; ".join([", ".join(counts), *parts] if counts else parts)


def named_data(data: Mapping[str, Any]) -> str:
    """Return the name of a result's data, with the numbers of images, captions and classes."""
    counts = counts_of(data)
    return str(data.get("name", "")) + f" ({counts})" * bool(counts)


def shown_metrics(*results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of the first result's metrics, without mAP@R if it equals R@1 in all results.

    The two metrics are equal if every query has only one correct answer.

    Example:
        >>> same = {"low": 0.1, "value": 0.2}
        >>> shown_metrics({"image_retrieval_recall@1": same, "image_retrieval_map@r": same})
        ['image_retrieval_recall@1']
    """
    return [name for name in results[0] if not all(_repeats_recall(name, metrics) for metrics in results)]


def _repeats_recall(name: str, metrics: Mapping[str, Mapping[str, Any]]) -> bool:
    recall = metrics.get(name.removesuffix("map@r") + "recall@1")
    if not name.endswith("map@r") or recall is None or name not in metrics:
        return False
    return all(isclose(value or 0, recall.get(key) or 0, abs_tol=1e-9) for key, value in metrics[name].items())


def shortened(text: str, length: int, *, keep_end: bool = False) -> str:
    """Shorten a text to at most `length` characters; an ellipsis replaces the omitted part.

    Example:
        >>> shortened("a red square", 6), shortened("images/0001.png", 9, keep_end=True)
        ('a red…', '…0001.png')
    """
    if len(text) <= length:
        return text
    return f"…{text[1 - length :]}" if keep_end else f"{text[: length - 1].rstrip()}…"


def number(metric: str, value: float | None) -> str:
    """Format the value of a metric: ranks, cosines, alignment and uniformity as numbers, other metrics in percent.

    Example:
        >>> number("acc1", 0.5)
        '50.0 %'
    """
    if value is None:
        return "–"
    if metric.endswith(("alignment", "uniformity")):
        return f"{value:.2f}"
    if metric.endswith(_COSINES):
        return f"{value:.3f}"
    if metric.endswith("median_rank"):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if metric.endswith("mean_rank") else f"{100 * value:.1f} %"
