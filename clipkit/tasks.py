"""Names and display formats of evaluation tasks and metrics, without heavy imports.

To add a task, write `clipkit/evaluation/tasks/NAME.py` with a `TASK`, and add a row to `TASKS`. A task with training
data, or with options of its own, gets a function in `clipkit/cli/evaluate.py` instead of `help` and `data`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskRow:
    """Display names of an evaluation task, for tables, reports and model cards."""

    title: str
    hub_name: str
    """Task type in the Hub's model index."""
    main_metric: str
    """Metric in a suite's table, unless the dataset specifies another one."""
    headlines: tuple[str, ...]
    """Metrics at the top of a report, as far as the result has them."""
    learns: bool = False
    """True if the task also needs labeled training data."""
    help: str = ""
    """Help of its command `clipkit eval NAME --data D`; empty: `clipkit/cli/evaluate.py` has a function for it."""
    data: str = ""
    """Help of this command's --data."""


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
        "Near misses", "image-text-matching", "acc", ("text_acc", "image_acc", "acc"),
        help="Evaluate compositional understanding (SugarCrepe, Winoground).\n\nThe model must choose the correct one "
        "of two captions, or of two images, that differ in one detail (hard negatives).",
        data="A CSV, JSON or JSONL file with the columns image, caption and negative_caption (SugarCrepe), or image_0, "
        "image_1, caption_0 and caption_1 (Winoground); or a folder of such files, one per category.",
    ),
}  # fmt: skip

# Tasks that occur only in results of training runs: title, and task type in the Hub's model index.
_OF_RUNS = {"views": ("Views of images", "image-feature-extraction")}

_METRICS = {
    "acc1": "top-1 accuracy",
    "acc5": "top-5 accuracy",
    "mean_per_class_recall": "mean per-class recall",
    "mean_recall": "mean recall",
    "mean_average_precision": "mean average precision",
    "ece": "calibration error",
    "image_acc": "image score",
    "text_acc": "text score",
    "acc": "group score",
    "recall@": "R@",
    "map@r": "mAP@R",
    "image_alignment": "image alignment",
    "image_uniformity": "image uniformity",
    "text_alignment": "text alignment",
    "text_uniformity": "text uniformity",
    "retention_similarity": "similarity with the pretrained model",
    "retention_acc1": "retained top-1 accuracy",
    "retention_mean_recall": "retained mean recall",
    "median_rank": "median rank",
    "mean_rank": "mean rank",
}
_PREFIXES = {
    "image_retrieval_": "text → image ",
    "text_retrieval_": "image → text ",
    "lp_": "linear probe: ",
    "knn_": "nearest neighbors: ",
    "image_view_": "image view → other view ",
    "text_view_": "text view → caption ",
}


def title_of(task: str) -> str:
    """Return the title of a task, or its name if the task is unknown."""
    return TASKS[task].title if task in TASKS else _OF_RUNS.get(task, (task, task))[0]


def hub_name_of(task: str) -> str:
    """Return the task type in the Hub's model index, or the name of the task if it is unknown."""
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


def number(metric: str, value: float | None) -> str:
    """Format the value of a metric: ranks, alignment and uniformity as numbers, all other metrics in percent.

    Example:
        >>> number("acc1", 0.5)
        '50.0 %'
    """
    if value is None:
        return "–"
    if metric.endswith(("alignment", "uniformity")):
        return f"{value:.2f}"
    if metric.endswith("median_rank"):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if metric.endswith("mean_rank") else f"{100 * value:.1f} %"
