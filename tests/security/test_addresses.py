"""Cells and names that are addresses: only http and https for images, few protocols for shards, and never a chain."""

import subprocess
from pathlib import Path
from typing import Any

import datasets  # noqa: F401, before the functions of fsspec are replaced
import imagehash  # noqa: F401, brings SciPy, which may start a program at its import
import pytest

from clipkit.data import broken_images, read_pairs, stream_feed
from clipkit.data.checks.scan import scan_images
from clipkit.data.sources import remote
from clipkit.data.sources.remote import Remote
from clipkit.data.sources.urls import IMAGES, STREAMS, protocol_of
from clipkit.errors import DataError, without_credentials
from clipkit.images import open_image
from tests.conftest import draw, write_csv

ATTACKS = [
    "reference://x::http://127.0.0.1:9/{{''.__class__}}.json",
    "reference://a/b::file:///etc/hostname",
    "file:///etc/hostname",
    "FILE:///etc/hostname",
    "local:///etc/hostname",
    "simplecache::file:///etc/hostname",
    "filecache::http://127.0.0.1:9/a.jpg",
    "blockcache::file:///etc/hostname",
    "zip://a.jpg::file:///tmp/a.zip",
    "tar://a.jpg::http://127.0.0.1:9/a.tar",
    "http://127.0.0.1:9/a.jpg::file:///etc/hostname",
    "https://127.0.0.1:9/a.jpg::simplecache",
    "memory://a.jpg",
    "data://text/plain;base64,AAAA",
    "ssh://root@127.0.0.1/etc/hostname",
    "sftp://127.0.0.1/a.jpg",
    "ftp://127.0.0.1/a.jpg",
    "smb://127.0.0.1/a.jpg",
    "github://a:b@main/a.jpg",
    "git://path:repository@main/a.jpg",
    "dask://worker/a.jpg",
    "hdfs://127.0.0.1/a.jpg",
    "jupyter://127.0.0.1/a.jpg",
    "s3://bucket/a.jpg",
    "generic://file:///etc/hostname",
    "dir://x::file:///etc",
    "asynclocal:///etc/hostname",
    "\thttp://127.0.0.1:9/a.jpg",
    "http:///etc/hostname",
    "http://127.0.0.1:9/a\r\nX: y.jpg",
]


@pytest.fixture(autouse=True)
def _nothing_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*given: Any, **_: Any) -> None:
        raise AssertionError(f"opened {given}")

    for name in ("fsspec.open", "fsspec.filesystem", "fsspec.core.url_to_fs", "fsspec.get_filesystem_class"):
        monkeypatch.setattr(name, forbidden)
    monkeypatch.setattr(subprocess, "Popen", forbidden)
    monkeypatch.setattr("os.system", forbidden)
    monkeypatch.setattr(remote, "_get", forbidden)
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CLIPKIT_FETCHED", str(tmp_path / "fetched"))


@pytest.mark.parametrize("address", ATTACKS)
def test_an_image_at_any_other_address_is_refused_before_it_is_opened(address: str) -> None:
    with pytest.raises(DataError, match="Remote|cannot be decoded|URLs|chain|valid") as caught:
        open_image(Remote(address))
    assert "opened" not in str(caught.value).replace("not opened", "").replace("never opened", "")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ATTACKS[:6])
def test_a_cell_with_such_an_address_is_an_unreadable_image(address: str, tmp_path: Path) -> None:
    draw("red", "circle").save(tmp_path / "a.png")
    file = write_csv(tmp_path / "p.csv", ["image", "caption"], [["a.png", "red"], [address, "other"]])
    pairs = read_pairs(str(file), broken=("images",))
    if "://" in address:
        assert list(broken_images(pairs.images)) == [1]
        assert list(scan_images(pairs.images).broken) == [1]
    with pytest.raises(DataError, match="1 of its 2 images") as caught:
        read_pairs(str(file))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "address",
    [
        *(address for address in ATTACKS if "::" in address),
        "file:///tmp/a.tar", "simplecache::s3://b/a.tar", "memory://a.tar", "reference://x::http://h/a.tar",
        "zip://a.tar::s3://b/c.zip", "s3://b/a.tar::file:///x.tar", "ssh://h/a.tar", "gs:///a.tar",
    ],
)  # fmt: skip
def test_a_stream_at_any_other_address_is_refused(address: str) -> None:
    name = address if address.endswith(".tar") else f"{address}.tar"
    with pytest.raises(DataError, match="://"):
        stream_feed(name, 10)


def test_braces_cannot_make_an_address_of_another_kind() -> None:
    for name in ("{http,file}:///tmp/a.tar", "{s3,reference}://x/a.tar", "http://h/{a,b::file:///c}.tar"):
        with pytest.raises(DataError, match="://"):
            stream_feed(name, 10)


def test_addresses_in_use_are_allowed() -> None:
    for address in (
        "http://example.org/a.jpg",
        "https://example.org:8443/a%20b.jpg?size=1&name=x:y",
        "https://me:secret@example.org/a.jpg",
        "HTTPS://example.org/ä b.jpg",
        "http://[::1]:8000/a.jpg",
        "http://me@[2001:db8::1]/a.jpg",
    ):
        assert protocol_of(address, IMAGES) in IMAGES
    for address in ("s3://bucket/a.tar", "gs://b/a.tar", "az://b/a.tar", "hf://datasets/me/mine/a.tar"):
        assert protocol_of(address, STREAMS) in STREAMS


def test_credentials_are_not_shown() -> None:
    assert without_credentials("https://me:secret@h/a@b.jpg") == "https://h/a@b.jpg"
    assert "secret" not in str(Remote("https://me:secret@h/a.jpg"))
    with pytest.raises(DataError) as caught:
        protocol_of("ftp://me:secret@h/a.jpg", IMAGES)
    assert "secret" not in str(caught.value)
