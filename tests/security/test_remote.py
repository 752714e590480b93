"""Images at addresses: fetched once, several at once, and never waited for without end."""

import http.server
import io
import logging
import socket
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import clipkit
from clipkit.data import read_pairs, stream_feed
from clipkit.data.checks.scan import scan_images
from clipkit.data.sources import members, remote, streams
from clipkit.data.sources.remote import Remote, fetch_ahead
from clipkit.errors import DataError
from clipkit.image_formats import pixel_limit
from clipkit.images import open_image
from tests.conftest import draw, write_csv
from tests.security.hostile import saved


class Server(http.server.ThreadingHTTPServer):
    """Counts requests; the path says what it answers: image, status codes, slow, endless, cut, redirects."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.counts: Counter[str] = Counter()
        self.done = threading.Event()
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *given: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.counts[self.path] += 1
        kind = self.path.strip("/").partition("/")[0].partition("?")[0].partition(".")[0]
        image = self.server.files.get(self.path, saved("PNG"))
        if kind.isdecimal():
            self.send_response(int(kind))
            self.end_headers()
        elif kind == "flaky" and self.server.counts[self.path] < 3:
            self.send_error(503)
        elif kind == "to":
            self.send_response(302)
            self.send_header("Location", self.path.partition("/to/")[2])
            self.end_headers()
        elif kind == "silent":
            self.server.done.wait(30)
        elif kind in ("endless", "slow"):
            self.send_response(200)
            self.end_headers()
            try:
                while not self.server.done.wait(0 if kind == "endless" else 0.05):
                    self.wfile.write(bytes(1 << 16 if kind == "endless" else 1))
            except OSError:
                pass
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(image) + (1000 if kind == "cut" else 0)))
            self.end_headers()
            self.wfile.write(image)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CLIPKIT_FETCHED", "")
    monkeypatch.setattr(remote, "BACK_OFF", 0.01)
    monkeypatch.setattr(remote, "_silent", {})
    monkeypatch.setattr(remote, "_failing", {})
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.done.set()
        running.shutdown()


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timeouts that a slow machine may exceed, for servers that do not answer."""
    monkeypatch.setattr(remote, "TIMEOUT", 0.2)
    monkeypatch.setattr(remote, "LONGEST", 0.4)


def table(folder: Path, addresses: list[str]) -> str:
    rows = [[address, f"words {number}"] for number, address in enumerate(addresses)]
    return str(write_csv(folder / "p.csv", ["image", "caption"], rows))


def test_an_address_is_fetched_once(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    addresses = [f"{server.url}/{name}.png" for name in "abcdef"]
    with caplog.at_level(logging.WARNING, "clipkit"):
        pairs = read_pairs(table(tmp_path, addresses))
        for image in [*pairs.images, *pairs.images]:
            assert open_image(image).size == (8, 8)
        scan_images(pairs.images)
    assert set(server.counts.values()) == {1}
    assert len(server.counts) == 6
    assert [record.getMessage() for record in caplog.records if "network" in record.getMessage()] == [
        "images are downloaded from the network, because the data contains URLs"
    ]


def test_a_run_fetches_each_image_once(
    server: Server, recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(16):
        content = io.BytesIO()
        draw("red", "circle", shift=number).save(content, "PNG")
        server.files[f"/n{number}.png?x"] = content.getvalue()
    source = table(tmp_path, [f"{server.url}{path}" for path in server.files])
    clipkit.train(recipe({"data.train": source, "data.validation": source, "train.epochs": 1, "data.workers": 2}))
    assert server.counts == dict.fromkeys(server.files, 1)


@pytest.mark.usefixtures("short_timeouts")
@pytest.mark.parametrize(
    ("path", "count", "reason"),
    [
        ("404/a.jpg", 1, "the server answered 404"),
        ("403/a.jpg", 1, "the server answered 403"),
        ("500/a.jpg", 3, "500.*after 3 attempts"),
        ("silent/a.jpg", 3, "no answer within 0.2 s, after 3 attempts"),
        ("slow/a.jpg", 3, "no answer|after 3 attempts"),
        ("endless/a.jpg", 1, "has more bytes than the limit"),
        ("cut/a.jpg", 3, "ended after|IncompleteRead"),
        ("to/file:///etc/hostname", 1, "."),
        ("to/ftp://127.0.0.1/a.jpg", 1, "."),
        ("to//to//to//404", 1, "."),
    ],
)
def test_answers_that_are_no_image(server: Server, path: str, count: int, reason: str) -> None:
    image = Remote(f"{server.url}/{path}")
    started = time.monotonic()
    with pixel_limit(1 << 20):
        for _ in range(2):  # the second time from memory
            with pytest.raises(DataError, match=reason) as caught:
                open_image(image)
            assert len(str(caught.value).splitlines()) == 1
    assert time.monotonic() - started < 5
    assert server.counts[f"/{path}"] <= max(count, 3)


def test_a_redirect_to_an_address_is_followed_and_retries_help(server: Server) -> None:
    assert open_image(Remote(f"{server.url}/to/{server.url}/b.png")).size == (8, 8)
    assert open_image(Remote(f"{server.url}/flaky/b.png")).size == (8, 8)
    assert open_image(Remote(f"{server.url}/a b/ä.png?q=ö x")).size == (8, 8)
    assert server.counts["/a%20b/%C3%A4.png?q=%C3%B6%20x"] == 1


@pytest.mark.usefixtures("short_timeouts")
def test_silent_addresses_are_tried_at_once_and_reported_once(server: Server, tmp_path: Path) -> None:
    addresses = [f"{server.url}/silent/{number}.jpg" for number in range(200)]
    started = time.monotonic()
    with pytest.raises(DataError, match=r"200 of its 200 images cannot be downloaded, e\.g\. .*silent") as caught:
        read_pairs(table(tmp_path, addresses))
    assert time.monotonic() - started < 4
    assert len(str(caught.value).splitlines()) == 1
    assert sum(server.counts.values()) < 100


@pytest.mark.usefixtures("short_timeouts")
def test_no_network_is_noticed_although_every_host_is_another(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BACK_OFF", 0.2)
    addresses = [f"http://127.0.{number // 200}.{number % 200 + 1}:9/{number}.jpg" for number in range(600)]
    started = time.monotonic()
    with pytest.raises(DataError, match=r"600 of its 600 images cannot be downloaded, e\.g\. .*refused"):
        read_pairs(table(tmp_path, addresses))
    assert time.monotonic() - started < 2
    assert "there seems to be no network" in fetch_ahead([Remote("http://127.0.0.1:9/1.jpg")])[0]


def test_hosts_that_fail_are_no_reason_against_others_that_answer(server: Server, tmp_path: Path) -> None:
    addresses = [f"http://127.0.0.{number + 1}:9/{number}.jpg" for number in range(14)]
    images = [Remote(address) for address in addresses]
    assert len(fetch_ahead([*images, Remote(f"{server.url}/a.png"), *images])) == 28


@pytest.mark.usefixtures("short_timeouts")
def test_a_port_that_accepts_and_says_nothing(tmp_path: Path, server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/a.jpg"
        with pytest.raises(DataError, match="no answer"):
            open_image(Remote(address))
    failed = fetch_ahead([Remote("http://127.0.0.1:9/a.jpg"), Remote(f"{server.url}/a.png"), Path("a.png")])
    assert list(failed) == [0]


def test_abandoned_folders_are_removed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache" / "fetched" / "999999999-aa").mkdir(parents=True)
    assert remote.begin().is_dir()
    assert [path.name for path in (tmp_path / "cache" / "fetched").iterdir()] == [remote.begin().name]


def sample(name: str, content: bytes, size: int | None = None, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = len(content) if size is None else size
    member.type = kind
    return member.tobuf() + content + bytes(-len(content) % 512)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (sample("000.png", saved("PNG"), 1 << 40), "000.png has 1,099,511,627,776 bytes"),
        (sample("000.txt", b"a", 1 << 30), "000.txt has 1,073,741,824 bytes"),
        (sample("000.json", b"{", 1 << 26), "000.json has 67,108,864 bytes"),
        (sample("x", b"a" * 512, 1 << 32, tarfile.GNUTYPE_LONGNAME), "a header of 4,294,967,296 bytes"),
        (sample("x", b"a" * 512, 1 << 32, tarfile.XHDTYPE), "a header of 4,294,967,296 bytes"),
        (sample("x", b"a" * 512, 1 << 32, tarfile.XGLTYPE), "a header of 4,294,967,296 bytes"),
    ],
)
def test_members_of_any_size_are_bounded(content: bytes, reason: str, tmp_path: Path, server: Server) -> None:
    server.files["/a.tar"] = content + bytes(10240)
    (tmp_path / "a.tar").write_bytes(server.files["/a.tar"])
    for name in (f"{tmp_path}/a.tar?stream=true", f"{server.url}/a.tar"):
        stream = streams.stream_of(name)
        assert stream is not None
        with pytest.raises(DataError, match=reason):
            list(stream.samples(stream.parts[0]))
    with pytest.raises(DataError, match="a.tar"):
        read_pairs(str(tmp_path / "a.tar"))


def test_a_shard_that_never_ends_is_an_error(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_MOST_PADDING", 1 << 20)
    whole = sample("000.png", saved("PNG")) + sample("000.txt", b"a dog") + bytes(8 << 20)
    (tmp_path / "a.tar").write_bytes(whole)
    stream = streams.stream_of(f"{tmp_path}/a.tar?stream=true")
    assert stream is not None
    with pytest.raises(DataError, match="bytes after the end of the tar"):
        list(stream.samples(stream.parts[0]))
    assert members.MOST_TEXT < 1 << 30


def test_a_stream_that_does_not_answer_is_an_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TIMEOUT", 0.2), ("BACK_OFF", 0.01), ("_SILENCE", 0.2)):
        monkeypatch.setattr(streams, name, value)
    feed = stream_feed(f"{server.url}/silent/a.tar", 10)
    assert feed is not None
    started = time.monotonic()
    with pytest.raises(DataError, match="cannot be read"):
        list(feed.stream.samples(feed.stream.parts[0]))
    assert time.monotonic() - started < 5
