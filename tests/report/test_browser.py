"""Reports in a real browser, as wide as a phone and as a screen."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import clipkit
from clipkit.report import comparison_report, evaluation_report
from tests.conftest import small_recipe

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]

MEASURE = """
<script>
addEventListener("load", () => {
  const inner = document.querySelector("iframe").contentDocument;
  const root = inner.documentElement;
  const wide = [...inner.querySelectorAll("body *")].filter(
    (own) => !own.closest(".scroll, pre, svg") && own.getBoundingClientRect().right > root.clientWidth + 1
  );
  document.body.append(Object.assign(document.createElement("output"), {
    textContent: JSON.stringify({
      width: root.clientWidth, needs: root.scrollWidth,
      wide: wide.slice(0, 5).map((own) => own.tagName + "." + own.className),
      images: [...inner.images].map((own) => own.naturalWidth),
      unnamed: [...inner.images].filter((own) => !own.alt).length
        + [...inner.querySelectorAll("svg")].filter((own) => !own.getAttribute("aria-label")).length,
      twice: [...inner.querySelectorAll("[id]")].map((own) => own.id).filter((own, at, all) => all.indexOf(own) !== at),
    }),
  }));
});
</script>
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, shapes: Path) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    clipkit.train(small_recipe(tiny_clip, shapes, folder / "run").override({"train.epochs": 12}))
    tuned, start = clipkit.load(folder / "run"), clipkit.load(tiny_clip)
    captions, classes = str(shapes / "captions.csv"), str(shapes / "classes.csv")
    retrieval = clipkit.evaluate.retrieval(tuned, captions)
    templates = [f"a photo of a {{c}} thing, number {number}" for number in range(30)]
    return {
        "run": (folder / "run" / "report.html").read_text(encoding="utf-8"),
        "retrieval": evaluation_report(retrieval),
        "zeroshot": evaluation_report(clipkit.evaluate.zeroshot(tuned, classes, templates=templates)),
        "comparison": comparison_report(
            clipkit.evaluate.compare(clipkit.evaluate.retrieval(start, captions), retrieval),
            clipkit.evaluate.retrieval(start, captions),
            retrieval,
        ),
    }


def measured(page: str, width: int, folder: Path) -> tuple[dict[str, Any], str]:
    """What a browser makes of the page in a frame of this width, and what it complains of."""
    file = folder / "frame.html"
    file.write_text(
        f'<!doctype html><meta charset="utf-8"><iframe width="{width}" height="844" style="border:0" '
        f'srcdoc="{html.escape(page)}"></iframe>{MEASURE}',
        encoding="utf-8",
    )
    assert CHROMIUM is not None
    run = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,900",
            "--enable-logging=stderr",
            f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", file.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    (found,) = re.findall(r"<output>(.*?)</output>", run.stdout, re.DOTALL)
    said = "\n".join(line for line in run.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(html.unescape(found)), said


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("name", ["run", "retrieval", "zeroshot", "comparison"])
def test_a_browser_shows_all_of_it(name: str, width: int, pages: dict[str, str], tmp_path: Path) -> None:
    assert len(pages[name].encode()) < 5_000_000
    found, said = measured(pages[name], width, tmp_path)
    assert said == ""
    assert found["width"] in range(width - 20, width + 1)
    assert found["needs"] <= found["width"]
    assert found["wide"] == []
    assert all(own > 0 for own in found["images"])
    assert found["images"]
    assert found["unnamed"] == 0
    assert found["twice"] == []


def test_the_measuring_notices(pages: dict[str, str], tmp_path: Path) -> None:
    wide = pages["retrieval"].replace(
        "<h1>", '<div style="width: 700px">wide</div><img src="data:image/png;base64,xx"><h1>'
    )
    found, said = measured(wide + "<script>console.error('mine')</script>", 390, tmp_path)
    assert "mine" in said
    assert found["needs"] > found["width"]
    assert 0 in found["images"]
    assert found["unnamed"] == 1
