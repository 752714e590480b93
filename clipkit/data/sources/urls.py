"""Check of the URLs in data before they are opened.

Only a few protocols are allowed, because data from others must not open local files or run code. In fsspec, a chain of
protocols such as `simplecache::file:///etc/passwd` opens a local file, and `reference://` evaluates templates.
"""

import re
from urllib.parse import urlsplit

from clipkit.errors import DataError, without_credentials

IMAGES = ("http", "https")
"""Allowed protocols for single images."""
STREAMS = ("http", "https", "s3", "gs", "az", "hf")
"""Allowed protocols for shards."""

_IPV6 = re.compile(r"(?<=://)([^/@]*@)?\[[0-9A-Fa-f:.]+\]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


def is_address(name: str) -> bool:
    """Return whether a name is a URL; other names are paths."""
    return "://" in name


def protocol_of(address: str, allowed: tuple[str, ...]) -> str:
    """Return the protocol of a URL after a check that it is allowed.

    Raises:
        DataError: the protocol is not allowed, or the URL contains `::`, has no host, or has unprintable characters.

    Example:
        >>> protocol_of("https://example.org/a.jpg", IMAGES)
        'https'
    """
    protocol = address.partition("://")[0].lower()
    if "::" in _IPV6.sub("", address, count=1):
        raise DataError(
            f"{_shown(address)}: contains ::, which chains several URLs and is not supported; give a single URL"
        )
    if protocol not in allowed:
        raise DataError(
            f"{_shown(address)}: URLs of this kind are not supported, only "
            f"{', '.join(f'{name}://' for name in allowed)}; download the file and give its path"
        )
    try:
        host = urlsplit(address).netloc.rpartition("@")[2]
    except ValueError:
        host = ""
    if not host or _UNPRINTABLE.search(address):
        raise DataError(f"{_shown(address)}: is not a valid URL; correct the URL")
    return protocol


def _shown(address: str) -> str:
    return without_credentials(address)[:200]
