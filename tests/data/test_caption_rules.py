"""Rules about captions that need no images."""

import numpy as np
import pytest

from clipkit.data import Pairs, quick_findings
from clipkit.data.checks.captions import normalized
from clipkit.data.sequences import Strings
from tests.data.scenes import files_named


def test_class_names_are_not_boilerplate() -> None:
    captions = [("cat", "dog", "fish")[number % 3] for number in range(100)]
    findings = quick_findings(Pairs("x", files_named(100), Strings.of(captions), np.arange(100)))
    assert [finding.name for finding in findings if "caption" in finding.name] == ["captions_are_classes"]


@pytest.mark.parametrize(
    ("captions", "name"),
    [
        (["Image", "photo", "A picture of", "no caption", "Untitled 12", "null", "N/A"], "stock_captions"),
        (["DSC_0012", "img-1234", "holiday.jpeg", "a/b/c.PNG"], "file_name_captions"),
        (["www.example.org/x", "HTTP://example.org"], "url_captions"),
        (["sunset", "Bäume!", "закат"], "one_word_captions"),
    ],
)  # fmt: skip
def test_captions_without_content_are_found(captions: list[str], name: str) -> None:
    good = [
        "a photo of a dog", "image of two cats", "see www.example.org for it", "test of strength", "一只狗在跑",
        "a test tube", "the image hangs askew", "no photo can show it", "10 dogs", "the unknown soldier",
        "salt and pepper", "fake image 北京",
    ]  # fmt: skip
    texts = captions + good
    findings = quick_findings(Pairs("x", files_named(len(texts)), Strings.of(texts), np.arange(len(texts))))
    found = [(finding.name, finding.count) for finding in findings if finding.name != "missing_images"]
    assert found == [(name, len(captions))]


def test_normalized_captions() -> None:
    texts = ["A dog, running !", "a  dog running", "Ünder", "?!", "", "👍", "👎"]
    assert normalized(texts).to_pylist() == ["adogrunning", "adogrunning", "ünder", "?!", "", "👍", "👎"]
