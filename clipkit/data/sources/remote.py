"""Images at URLs. A command downloads each image once, and stores it on disk until the command ends."""

import atexit
import base64
import hashlib
import logging
import os
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from uuid import uuid4

from tqdm.auto import tqdm

from clipkit.data.sources.urls import IMAGES, protocol_of
from clipkit.errors import DataError, one_line, without_credentials
from clipkit.files import cache_folder
from clipkit.image_formats import most_file_bytes
from clipkit.images import Stored
from clipkit.opening import read_file

TIMEOUT = 10.0
"""Seconds without an answer after which a download attempt ends."""
LONGEST = 60.0
"""Seconds after which a download attempt ends even if data still arrives."""
ATTEMPTS = 3
BACK_OFF = 0.5
"""Seconds to wait before the second attempt; doubled for each further attempt."""
AT_ONCE = 16
"""Number of URLs that are downloaded at the same time."""
# After this number of consecutive URLs without an answer, no requests are sent to a host for a while.
_SILENT_AFTER = 3
_SILENT_SECONDS = 60.0
_RESERVED = 2 << 30  # number of bytes of the disk that stay free
_VARIABLE = "CLIPKIT_FETCHED"  # environment variable that tells child processes the folder of downloaded images
_FAILED = ".failed"

_LOCKS = [threading.Lock() for _ in range(64)]
_silent: dict[str, tuple[int, float]] = {}
"""Host -> number of consecutive URLs without an answer, and the time of the last of these requests."""
_failing: dict[str, float] = {}
"""Host -> time of its last failed request; cleared when any host answers. Many such hosts mean: no network."""


@dataclass(frozen=True, slots=True)
class Remote(Stored):
    """Image at an http or https URL. `size` is -1: the size is unknown before the download."""

    address: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.address.partition("?")[0]).name

    @property
    def size(self) -> int:
        return -1

    def __str__(self) -> str:
        return without_credentials(self.address)

    def read_bytes(self) -> bytes:
        try:
            protocol_of(self.address, IMAGES)
        except DataError as error:
            raise OSError(str(error).removeprefix(f"{self}: ")) from None
        name = hashlib.sha256(self.address.encode(errors="surrogatepass")).hexdigest()
        with _LOCKS[int(name[:2], 16) % len(_LOCKS)]:
            return _kept(self.address, begin() / name)


def begin() -> Path:
    """Return the folder for the images that this run downloads. The first call creates the folder and logs a warning.

    Call this function before processes are forked, so that all processes use the same folder.
    """
    existing = os.environ.get(_VARIABLE)
    if existing:
        return Path(existing)
    # Processes of one run on this machine have the same parent, the launcher.
    is_one_of_several = "LOCAL_RANK" in os.environ
    process = os.getppid() if is_one_of_several else os.getpid()
    folder = cache_folder() / "fetched" / (f"{process}" if is_one_of_several else f"{process}-{uuid4().hex[:8]}")
    _remove_abandoned(folder.parent)
    with suppress(OSError):  # without the folder, each use downloads the image again
        folder.mkdir(parents=True, exist_ok=True)
    os.environ[_VARIABLE] = str(folder)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        atexit.register(_remove, folder, os.getpid())
        logging.getLogger("clipkit").warning("images are downloaded from the network, because the data contains URLs")
    return folder


def fetch_ahead(images: Iterable[object], progress: bool = False) -> dict[int, str]:
    """Download the images that are at URLs, several at the same time.

    Args:
        images: images of any kind.
        progress: show a progress bar on a terminal.

    Returns:
        Position of each image that cannot be downloaded -> reason.
    """
    remote = [(position, image) for position, image in enumerate(images) if isinstance(image, Remote)]
    if not remote:
        return {}
    # Each process begins at a different image, so that they download different images at the same time.
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    start = len(remote) * rank // max(1, count)
    remote = remote[start:] + remote[:start]

    def problem(image: Remote) -> str | None:
        try:
            image.read_bytes()
        except OSError as error:
            return one_line(error) or type(error).__name__
        return None

    with (
        ThreadPoolExecutor(min(AT_ONCE, len(remote))) as pool,
        tqdm(total=len(remote), desc="fetching", unit="", disable=None if progress else True, leave=False) as bar,
    ):
        failed = {}
        for (position, _), reason in zip(remote, pool.map(lambda item: problem(item[1]), remote), strict=True):
            bar.update()
            if reason is not None:
                failed[position] = reason
    return dict(sorted(failed.items()))


def check_fetched(name: str, images: Sequence[object]) -> None:
    """Download the images that are at URLs, with a progress bar on a terminal.

    Raises:
        DataError: images cannot be downloaded; the message gives their number and the first reason.
    """
    failed = fetch_ahead(images, progress=True)
    if failed:
        position, reason = next(iter(failed.items()))
        raise DataError(
            f"{name}: {len(failed)} of its {len(images)} images cannot be downloaded, e.g. "
            f"{images[position]} ({reason}); check the URLs and the network, or remove the rows of these images"
        )


def _kept(address: str, file: Path) -> bytes:
    """Return the content at a URL: read it from `file` or, if `file` is missing, download and store it.

    Raises:
        OSError: the download fails, or an earlier download of this URL failed.
    """
    failed = file.with_name(file.name + _FAILED)
    try:
        return read_file(file)
    except OSError:
        pass
    try:
        reason = read_file(failed).decode()
    except OSError:
        reason = ""
    if reason:
        raise OSError(reason)
    try:
        content = _fetched(address)
    except _SilentHostError:
        raise
    except OSError as error:
        _keep(failed, str(error).encode())
        raise
    _keep(file, content)
    return content


def _keep(file: Path, content: bytes) -> None:
    # Not `write_whole`, which waits for the disk: after a crash of the machine, nobody reads these files.
    temporary = file.with_name(f"{file.name}.{uuid4().hex[:8]}")
    try:
        if shutil.disk_usage(file.parent).free > _RESERVED + len(content):
            temporary.write_bytes(content)
            temporary.replace(file)
    except OSError:  # without a writable cache, the run is only slower
        temporary.unlink(missing_ok=True)


class _SilentHostError(OSError):
    pass


class _HttpError(OSError):
    """Error after which a download is not repeated, e.g. status 404."""


def _fetched(address: str) -> bytes:
    host = urlsplit(address).netloc.rpartition("@")[2].lower()
    failing = dict(_failing)
    if len(failing) >= AT_ONCE and time.monotonic() - max(failing.values()) < _SILENT_SECONDS:
        raise _SilentHostError(
            f"none of the last {len(failing)} hosts answered, so there seems to be no network connection"
        )
    count, last = _silent.get(host, (0, 0.0))
    if count >= _SILENT_AFTER and time.monotonic() - last < _SILENT_SECONDS:
        raise _SilentHostError(f"{host} does not answer; {count} other URLs on this host failed before")
    attempts = 1 if count >= _SILENT_AFTER else ATTEMPTS
    for attempt in range(attempts):
        if attempt and len(_failing) >= AT_ONCE:
            break
        if attempt:
            time.sleep(BACK_OFF * 2 ** (attempt - 1))
        try:
            content = _get(address)
            _answered(host)
            return content
        except _HttpError:
            _answered(host)
            raise
        except (OSError, HTTPException, ValueError) as error:
            reason = _reason(error)
            _failing[host] = time.monotonic()
    _silent[host] = (_silent.get(host, (0, 0.0))[0] + 1, time.monotonic())
    attempts = attempt + 1
    raise OSError(f"{reason}, after {attempts} attempt{'s' * (attempts > 1)}")


def _answered(host: str) -> None:
    _silent.pop(host, None)
    _failing.clear()


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT:g} s"
    return (one_line(cause) if isinstance(cause, BaseException) else str(cause)) or type(error).__name__


def _get(address: str) -> bytes:
    """Download the content at a URL in one attempt. Redirects are followed only to http and https."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor,
    ):  # fmt: skip
        opener.add_handler(handler())
    deadline = time.monotonic() + LONGEST
    most = most_file_bytes()
    content = bytearray()
    try:
        with opener.open(_request(address), timeout=TIMEOUT) as response:
            expected = response.headers.get("Content-Length", "")
            if most is not None and expected.isdecimal() and int(expected) > most:
                raise _HttpError(f"the file has {expected} bytes, more than the limit of {most}")
            while part := response.read1(1 << 16):
                content += part
                if most is not None and len(content) > most:
                    raise _HttpError(f"the file has more bytes than the limit of {most}")
                if time.monotonic() > deadline:
                    raise TimeoutError
    except HTTPError as error:
        error.close()
        if error.code >= 500 or error.code in (408, 425, 429):
            raise
        raise _HttpError(f"the server answered {error.code} {error.reason}") from None
    if expected.isdecimal() and len(content) != int(expected):
        raise OSError(f"the download ended after {len(content)} of {expected} bytes")
    return bytes(content)


def _request(address: str) -> urllib.request.Request:
    parts = urlsplit(address)
    credentials, _, host = parts.netloc.rpartition("@")
    host = host if host.isascii() else host.encode("idna").decode()
    headers = {"User-Agent": "clipkit"}
    if credentials:
        headers["Authorization"] = f"Basic {base64.b64encode(unquote(credentials).encode()).decode()}"
    plain = parts._replace(
        scheme=parts.scheme.lower(), netloc=host, path=_quoted(parts.path), query=_quoted(parts.query), fragment=""
    )
    return urllib.request.Request(urlunsplit(plain), headers=headers)


def _quoted(part: str) -> str:
    """Percent-encode spaces and non-ASCII characters."""
    return quote(part, safe="".join(map(chr, range(0x21, 0x7F))))


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # forked processes must not remove the folder of their parent
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of downloaded images that killed processes left behind."""
    try:
        folders = list(parent.iterdir())
    except OSError:
        return
    for folder in folders:
        process = folder.name.partition("-")[0]
        if process.isdecimal() and not Path("/proc", process).exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)
