"""`clipkit browse` as it is typed."""

import http.client
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cli.conftest import type_
from tests.forked import Running


@pytest.fixture(scope="module")
def index(shapes: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from clipkit.search import embed

    folder = tmp_path_factory.mktemp("browse") / "index"
    embed(str(shapes / "captions.csv"), tiny_clip, folder)
    return folder


def test_the_printed_address_answers_until_the_command_is_stopped(index: Path) -> None:
    running = Running(["-m", "clipkit", "browse", index, "--port", "0"])
    end = time.monotonic() + 120
    while "token=" not in running.output()[0] and running.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    printed = running.output()[0]
    assert "16 images" in printed, running.output()
    url = urlsplit(next(word for word in printed.split() if word.startswith("http://127.0.0.1:")))
    connection = http.client.HTTPConnection(url.netloc, timeout=30)
    connection.request("GET", f"/?{url.query}")
    assert connection.getresponse().status == 303
    running.send_signal(signal.SIGINT)
    assert "stopped" in running.communicate(timeout=300)[0]
    assert running.returncode == 0


def test_what_cannot_be_browsed_is_one_line(index: Path, said_here: Callable[..., str], tmp_path: Path) -> None:
    assert "nowhere" in said_here("browse", tmp_path / "nowhere")
    assert "manifest.json" in said_here("browse", tmp_path)
    assert "nowhere/model" in said_here("browse", index, "--model", "nowhere/model")
    assert "queries.txt" in said_here("browse", index, "--queries", "queries.txt")
    assert "queries.txt" in said_here("browse", index, index, "--queries", "queries.txt")
    assert "nowhere" in said_here("browse", index, tmp_path / "nowhere")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in said_here("browse", index, "--port", port)


def test_help_names_the_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    type_(monkeypatch, "browse", "--help")
    assert "data check" in " ".join(capsys.readouterr().out.split())
