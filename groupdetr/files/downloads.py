"""Files at addresses (http and https) that a user has named. Nothing else is ever downloaded.

An address that cannot be reached is known after a moment, and the size of a file is limited.
"""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote, unquote, urlsplit

from groupdetr.console.text import file_name
from groupdetr.errors import DataError
from groupdetr.files.missing import as_typed
from groupdetr.files.writing import explained
from groupdetr.version import __version__

CONNECT_SECONDS = 2.0  # after which a server that does not answer counts as unreachable
READ_SECONDS = 20.0  # without a byte, after which a download is given up
MAX_IMAGE_BYTES = 2**28  # 256 MiB
MAX_VIDEO_BYTES = 2**32  # 4 GiB
CHUNK = 2**20  # bytes that are read at a time
USER_AGENT = f"groupdetr/{__version__} (https://github.com/groupdetr/groupdetr)"
_PORTS = {"http": 80, "https": 443}


def is_address(argument: object) -> bool:
    """True if an argument is the address of a file, http or https.

    >>> is_address("https://example.com/photo.jpg"), is_address("photo.jpg")
    (True, False)
    """
    return str(argument).lower().startswith(("http:/", "https:/"))


def name_in_address(address: str) -> str:
    """Return the name of the file that an address ends with, as a name for files of this machine.

    >>> name_in_address("https://example.com/a%20b/photo.jpg?size=large")
    'photo.jpg'
    """
    path = unquote(urlsplit(as_typed(address)).path).rstrip("/")
    return file_name(path.rpartition("/")[2] or "download")


@contextmanager
def downloaded(address: str, max_bytes: int) -> Iterator[Path]:
    """Yield a temporary file with the content of an address. It is removed afterwards.

    `DataError` if it cannot be reached, or if the file has more than ``max_bytes``.
    """
    address = as_typed(address)
    with TemporaryDirectory(prefix="groupdetr-download-") as folder:
        path = Path(folder) / name_in_address(address)
        with explained(path), path.open("wb") as file:
            for chunk in _content(address, max_bytes):
                file.write(chunk)
        yield path


def _content(address: str, max_bytes: int) -> Iterator[bytes]:
    """Yield the bytes of a file on the internet."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise DataError(f"this is not an address: {error}", address, "check it") from error
    if not host:
        raise DataError("this address names no server", address, "check the address")
    _expect_reachable(address, parts.scheme.lower(), host, port)
    # Addresses are often copied with spaces or letters that HTTP does not allow.
    encoded = quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(encoded, headers={"User-Agent": USER_AGENT})
    size = 0
    try:
        with urllib.request.urlopen(request, timeout=READ_SECONDS) as response:
            length = response.headers.get("Content-Length", "")
            expected = int(length) if length.isdecimal() else None
            if expected is not None and expected > max_bytes:
                raise _too_large(address, max_bytes)
            while chunk := response.read(CHUNK):
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(address, max_bytes)
                yield chunk
    except urllib.error.HTTPError as error:
        remedy = "check the address; some files need a login, so download them in a browser"
        what = f"the server answers {error.code} {error.reason}"
        raise DataError(what, address, remedy) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        what = f"this file could not be downloaded: {reason}"
        raise DataError(what, address, "try again later, or pass a file") from error
    if expected is not None and size < expected:
        what = f"the download ended after {size} of {expected} bytes"
        raise DataError(what, address, "try again later, or pass a file")


def _too_large(address: str, max_bytes: int) -> DataError:
    what = f"this file has more than {max_bytes // 2**20:,} MiB"
    return DataError(what, address, "download it yourself, and pass its path")


def _expect_reachable(address: str, scheme: str, host: str, port: int | None) -> None:
    """Raise `DataError` unless the server, or the proxy before it, accepts a connection."""
    # A proxy looks up the name of the server itself.
    proxy = urllib.request.getproxies().get(scheme)
    target = (host, port or _PORTS[scheme])
    if proxy and not urllib.request.proxy_bypass(host):
        with suppress(ValueError):
            parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            target = (parts.hostname or host, parts.port or _PORTS.get(parts.scheme, 80))
    answered = threading.Event()
    reasons: list[str] = []

    def connect() -> None:
        try:
            socket.create_connection(target, timeout=CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            reasons.append(str(getattr(error, "strerror", "") or error))
        else:
            answered.set()

    # A thread, because no timeout applies to the search for the address of a name.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not answered.is_set():
        reason = reasons[0] if reasons else f"no answer in {CONNECT_SECONDS:g} seconds"
        what = f"the server {target[0]} cannot be reached: {reason}"
        raise DataError(what, address, "check the address and the network, or pass a file")
