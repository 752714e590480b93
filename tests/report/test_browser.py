"""Reports in a real browser, at the widths of a phone and a desktop screen."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import clipkit
from clipkit.report.comparison import comparison_report
from clipkit.report.demo import demo_report
from clipkit.report.evaluation import evaluation_report
from clipkit.report.suite import suite_report
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
  const tooWide = [...inner.querySelectorAll("body *")].filter(
    (node) => !node.closest(".scroll, pre, svg") && node.getBoundingClientRect().right > root.clientWidth + 1
  );
  document.body.append(Object.assign(document.createElement("output"), {
    textContent: JSON.stringify({
      width: root.clientWidth, needs: root.scrollWidth,
      wide: tooWide.slice(0, 5).map((node) => node.tagName + "." + node.className),
      // Tables that scroll without a visible cue, and cues of tables that do not scroll.
      hidden: [...inner.querySelectorAll(".scroll:has(table)")].filter((box) => box.scrollWidth > box.clientWidth + 1
        && !(box.offsetHeight > box.clientHeight && (root.clientWidth > 640 || box.classList.contains("many"))))
        .map((box) => box.getAttribute("aria-label")),
      cropped: [...inner.images].filter((image) => getComputedStyle(image).objectFit === "cover").length,
      images: [...inner.images].map((image) => image.naturalWidth),
      unnamed: [...inner.images].filter((image) => !image.alt).length
        + [...inner.querySelectorAll("svg")].filter((svg) => !svg.getAttribute("aria-label")).length,
      duplicateIds: [...inner.querySelectorAll("[id]")].map((node) => node.id)
        .filter((id, index, ids) => ids.indexOf(id) !== index),
    }),
  }));
});
</script>
"""


def suite_of_three_models() -> dict[str, Any]:
    models = ["openai/clip-vit-base-patch32", "open_clip:ViT-B-32/laion2b_s34b_b79k", "runs/mine"]
    figure = {"metric": "acc1", "value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.1, "images": 10_000}
    titles = {"cifar10": "CIFAR-10", "imagenetv2": "ImageNet-V2 matched frequency"}
    rows = [
        {"dataset": name, "title": title, "model": model} | figure for name, title in titles.items() for model in models
    ]
    fallen = {"original": 0.5, "value": 0.4, "relative_drop": 0.2, "effective_robustness": 0.01}
    robustness = [{"dataset": "imagenetv2", "version_of": "cifar10", "model": model} | fallen for model in models]
    return {
        "title": "Two sets", "suite": "two", "models": models, "rows": rows, "unreached": {}, "failed": {},
        "versions": {}, "robustness": robustness, "robustness_means": [],
    }  # fmt: skip


def demo_of(folder: Path, retrieval: Any, zeroshot: Any) -> str:
    results = {"retrieval": retrieval, "zeroshot": zeroshot}
    models = dict.fromkeys(("trained", "shuffled names", "untrained"), results)
    (folder / "demo.json").write_text(json.dumps({"models": models, "train_seconds": 135.0}))
    return demo_report(folder)


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
        "suite": suite_report(suite_of_three_models()),
        "demo": demo_of(folder, retrieval, clipkit.evaluate.zeroshot(tuned, classes)),
        "comparison": comparison_report(
            clipkit.evaluate.compare(clipkit.evaluate.retrieval(start, captions), retrieval),
            clipkit.evaluate.retrieval(start, captions),
            retrieval,
        ),
    }


def measured(page: str, width: int, folder: Path) -> tuple[dict[str, Any], str]:
    """Return the layout of the page in a frame of this width, and the messages on the browser's console."""
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
    (output,) = re.findall(r"<output>(.*?)</output>", run.stdout, re.DOTALL)
    console = "\n".join(line for line in run.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(html.unescape(output)), console


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("name", ["run", "retrieval", "zeroshot", "comparison", "suite", "demo"])
def test_page_fits_the_width_and_shows_every_image(
    name: str, width: int, pages: dict[str, str], tmp_path: Path
) -> None:
    assert len(pages[name].encode()) < 5_000_000
    layout, console = measured(pages[name], width, tmp_path)
    assert console == ""
    assert layout["width"] in range(width - 20, width + 1)
    assert layout["needs"] <= layout["width"]
    assert layout["wide"] == []
    assert all(width > 0 for width in layout["images"])
    assert layout["images"] or name == "suite"
    assert layout["hidden"] == []
    assert layout["cropped"] == 0
    assert layout["unnamed"] == 0
    assert layout["duplicateIds"] == []


def test_measurement_detects_planted_faults(pages: dict[str, str], tmp_path: Path) -> None:
    wide = pages["retrieval"].replace(
        "<h1>", '<div style="width: 700px">wide</div><img src="data:image/png;base64,xx"><h1>'
    )
    wide = wide.replace("object-fit: contain", "object-fit: cover")
    layout, console = measured(wide + "<script>console.error('mine')</script>", 390, tmp_path)
    assert "mine" in console
    assert layout["needs"] > layout["width"]
    assert 0 in layout["images"]
    assert layout["unnamed"] == 1
    assert layout["cropped"] > 0
