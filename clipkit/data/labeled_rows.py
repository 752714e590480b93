"""Removal of rows without a label."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipkit.data.prompts import paired_names, read_classes
from clipkit.data.sequences import chosen
from clipkit.data.sources.columns import ClassList, Rows
from clipkit.errors import DataError
from clipkit.findings import Finding, counted, percent

_NO_LABEL = "-1"  # in a column of numbers, -1 means that the class is unknown, as null does
_EXAMPLES = 5


def labeled_rows(rows: Rows, classes: str | None = None) -> Rows:
    """Remove the rows without a label, and apply the given class names.

    Findings report the number of removed rows, and the classes that have no images.

    Args:
        rows: rows with a column `label`. Null, and -1 in a column of numbers, mean that there is no label.
        classes: source of class names for `read_classes`; None: use the names in the data.

    Raises:
        DataError: no row has a label, or a label has no name.
    """
    column = rows.columns["label"]
    is_list = pa.types.is_large_list(column.type)
    listed = rows.classes or ClassList()
    values = pc.unique(pc.list_flatten(column) if is_list else column).to_pylist()
    labels = {(value or "").strip() for value in values if value is not None} - {""}
    missing = pc.is_null(column).to_numpy(zero_copy_only=False)
    if not is_list and _NO_LABEL in labels and all(label.isdecimal() for label in labels - {_NO_LABEL}):
        missing = missing | pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), _NO_LABEL), True).to_numpy(False)
        labels -= {_NO_LABEL}
    findings = list(rows.findings)
    count = int(missing.sum())
    if count == len(missing):
        raise DataError(
            f"{rows.name}: none of its {counted(count, rows.row)} has a label (null and -1 mean that there is none); "
            "choose a split that has labels, or name another column with ?label=COLUMN"
        )
    if count:
        findings.append(
            Finding(
                "unlabeled_images", "warning",
                f"{rows.name}: {count:,} of {counted(len(missing), rows.row)} ({percent(count / len(missing))}) have "
                "no label (null or -1) and are left out",
                "add the labels, or drop these rows", count=count, share=count / len(missing),
            )
        )  # fmt: skip
        kept = np.flatnonzero(~missing)
        rows = replace(
            rows,
            columns={role: values.take(pa.array(kept)) for role, values in rows.columns.items()},
            images=None if rows.images is None else chosen(rows.images, kept),
            keys=None if rows.keys is None else rows.keys.take(pa.array(kept)),
        )
    if classes is not None:
        known = list(listed.labels) if listed.labels is not None else sorted(labels)
        names = paired_names(f"{rows.name}?classes={classes}", known, read_classes(classes))
        listed = replace(listed, labels=list(names), names=list(names.values()))
    findings += _without_images(rows.name, listed, labels)
    return replace(rows, classes=listed, findings=findings)


def _without_images(name: str, listed: ClassList, labels: set[str]) -> list[Finding]:
    names: Mapping[str, str] = dict(zip(listed.labels or (), listed.names or listed.labels or (), strict=False))
    unused = [names[label] for label in names if label not in labels]
    if not unused:
        return []
    some = ", ".join(unused[:_EXAMPLES]) + ", …" * (len(unused) > _EXAMPLES)
    return [
        Finding(
            "classes_without_images", "note",
            f"{name}: {len(unused):,} of its {len(names):,} classes have no images in this data ({some})",
            "zero-shot classification can choose these classes too; to exclude them, remove them from the class names",
            count=len(unused), share=len(unused) / len(names), examples=tuple(unused[:_EXAMPLES]),
        )
    ]  # fmt: skip
