"""The page in a real browser, on a phone and on a desktop screen: it shows images, and names and captions stay text."""

import asyncio
import csv
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from clipkit.models import DualEncoder
from clipkit.search import Index, embed
from clipkit.search.browse.app import App
from clipkit.search.browse.http import Server
from tests.conftest import write_csv

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]
MARKUP = "<img src=x onerror=document.title='hacked'><script>document.title='hacked'</script>"
LAYOUT = """
JSON.stringify({
  width: innerWidth, needs: document.documentElement.scrollWidth, title: document.title,
  status: document.getElementById("status").textContent,
  cards: document.querySelectorAll(".card").length,
  broken: [...document.querySelectorAll("#grid img")].filter((image) => image.complete && !image.naturalWidth).length,
  seen: [...document.querySelectorAll("#grid img")].filter((image) => image.naturalWidth).length,
  texts: [...document.querySelectorAll(".card .text")].map((text) => text.textContent),
  unnamed: [...document.querySelectorAll("button, input, select")].filter((control) => !control.textContent.trim()
    && !control.ariaLabel && !control.labels?.length && !control.querySelector("img")).length,
  listed: document.getElementById("listed").textContent,
})
"""


@pytest.fixture(scope="module")
def server(shapes: Path, model: DualEncoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("browser")
    with (shapes / "captions.csv").open(encoding="utf-8") as file:
        rows = [[str(shapes / image), caption] for image, caption in list(csv.reader(file))[1:]]
    name = "<b onmouseover=alert(1)>.png"
    shutil.copy(shapes / "images" / "00.png", folder / name)
    data = write_csv(
        folder / "d.csv", ["image", "caption", MARKUP], [[*row, MARKUP] for row in [[name, MARKUP], *rows]]
    )
    embed(str(data), model, folder / "index")
    app = App([Index(folder / "index", model=model)])
    with Server(0, app.answer) as started:
        threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield started
        started.shutdown()
    app.close()


class Tab:
    """A page of the browser, driven by the DevTools protocol."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.number, self.messages = socket, 0, list[str]()

    async def call(self, method: str, **arguments: Any) -> Any:
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": arguments})
        while True:
            answer = json.loads((await self.socket.receive()).data)
            if answer.get("id") == self.number:
                return answer.get("result", answer)
            if answer.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.messages.append(json.dumps(answer["params"]))

    async def value(self, script: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        return answer["result"].get("value", answer)

    async def until(self, condition: str, seconds: float = 30) -> None:
        for _ in range(int(seconds * 10)):
            if await self.value(condition):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{condition} is not true; {self.messages} {await self.value(LAYOUT)}")


async def _visited(
    address: str, width: int, folder: Path, scripts: list[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Open an address; run each script, wait for images, and return the layouts and the messages of the console."""
    assert CHROMIUM is not None
    browser = subprocess.Popen(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
            f"--user-data-dir={folder / 'profile'}", "about:blank",
        ],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert browser.stderr is not None
        port = next(found[1] for line in browser.stderr if (found := re.search(r"ws://127.0.0.1:(\d+)/", line)))
        async with aiohttp.ClientSession() as session:
            tabs = await (await session.get(f"http://127.0.0.1:{port}/json")).json()
            debugger = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            async with session.ws_connect(debugger, max_msg_size=0) as socket:
                tab = Tab(socket)
                for method in ("Runtime.enable", "Log.enable", "Page.enable"):
                    await tab.call(method)
                await tab.call(
                    "Emulation.setDeviceMetricsOverride",
                    width=width,
                    height=844,
                    deviceScaleFactor=1,
                    mobile=width < 600,
                )
                await tab.call("Page.navigate", url=address)
                await tab.until("/\\d/.test(document.getElementById('status')?.textContent)")
                layouts = []
                for script in scripts:
                    await tab.value(script)
                    await asyncio.sleep(0.2)
                    await tab.until("[...document.querySelectorAll('#grid img')].every((image) => image.complete)")
                    layouts.append(json.loads(await tab.value(LAYOUT)))
                return layouts, tab.messages
    finally:
        browser.terminate()
        browser.wait()


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_shows_images_and_markup_stays_text(width: int, server: Server, tmp_path: Path) -> None:
    click = "document.querySelector('[data-view={}]').click(); new Promise((done) => setTimeout(done, 1500))"
    scripts = [
        "1", click.format("duplicates"), click.format("outliers"), click.format("captions"),
        "document.querySelector('.card input').click()", click.format("list"),
        "document.querySelector('.open').click(); document.title",
    ]  # fmt: skip
    layouts, messages = asyncio.run(_visited(f"{server.address}#view=all", width, tmp_path, scripts))
    assert messages == []
    for layout in layouts:
        assert layout["needs"] <= layout["width"] == width
        assert layout["broken"] == layout["unnamed"] == 0
        assert "hacked" not in layout["title"]
    every, *_, marked, listed, _ = layouts
    assert every["cards"] >= 6
    assert every["seen"] == every["cards"]
    assert (marked["listed"], listed["cards"]) == ("1", 1)
    assert any(MARKUP in text for layout in layouts for text in layout["texts"])


UNTIL = """
new Promise((done) => {{
  const shown = () => /{}/.test(document.getElementById("status").textContent);
  const again = () => (shown() ? done() : setTimeout(again, 100));
  again();
}})
"""
PRESS = """
for (const key of {}) {{
  const pressed = new KeyboardEvent("keydown", {{ key, shiftKey: true, bubbles: true }});
  document.querySelector("canvas").dispatchEvent(pressed);
}}
"""
CORNERS = ["ArrowLeft"] * 6 + ["ArrowUp"] * 6 + ["Enter"] + ["ArrowRight"] * 10 + ["ArrowDown"] * 10 + ["Enter"]


@pytest.mark.parametrize("width", [390, 1200])
def test_the_map_by_keyboard_and_two_searches(
    width: int, index_folder: Path, model: DualEncoder, tmp_path: Path
) -> None:
    folders = [shutil.copytree(index_folder, tmp_path / name) for name in ("before", "after")]
    app = App([Index(folder, model=model) for folder in folders])
    click = "document.querySelector('{}').click();" + UNTIL
    later = ".then(() => new Promise((done) => setTimeout(done, 2000)))"
    scripts = [
        click.format("[data-view=map]", "on the map"), PRESS.format(CORNERS[:-1]),
        PRESS.format(["Enter"]) + UNTIL.format("images ·"), click.format("[data-view=labels]", "·|No images"),
        click.format("[data-view=compare]", "Enter words") + later, click.format(".ask", "in common"),
    ]  # fmt: skip
    with Server(0, app.answer) as started:
        threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        layouts, messages = asyncio.run(_visited(f"{started.address}#view=all", width, tmp_path, scripts))
        started.shutdown()
    app.close()
    assert messages == []
    for layout in layouts:
        assert layout["needs"] <= layout["width"] == width
        assert layout["broken"] == layout["unnamed"] == 0
    whole, corner, selected, _, queries, compared = layouts
    assert "16 images on the map" in whole["status"]
    assert "corner" in corner["status"]
    assert "16 images" in selected["status"]
    assert any("10 of 10 in common" in text for text in queries["texts"])
    assert "10 of the first 10 in common" in compared["status"]
    assert sum("other list:" in text for text in compared["texts"]) == 32
