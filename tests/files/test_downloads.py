"""Files at addresses, from a server on this machine."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupdetr.data.image_input import to_rgb
from groupdetr.errors import DataError
from groupdetr.files import downloads
from groupdetr.files.downloads import downloaded, is_address, name_in_address
from groupdetr.version import __version__

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


class Handler(BaseHTTPRequestHandler):
    """Answers with an image, and with what may go wrong."""

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers["User-Agent"]))  # type: ignore[attr-defined]
        buffer = io.BytesIO()
        Image.fromarray(PIXELS).save(buffer, "PNG")
        content = buffer.getvalue()
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        if self.path.startswith("/nothing"):
            self.send_error(404)
            return
        self.send_response(200)
        if self.path.startswith("/page"):
            content = b"<!DOCTYPE html><html>not an image</html>"
        if self.path.startswith("/endless"):
            self.end_headers()
            while True:
                try:
                    self.wfile.write(bytes(2**16))
                except OSError:
                    return
        length = len(content) + 1000 * self.path.startswith("/cut")
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.path.startswith("/silent"):
            self.wfile.flush()
            time.sleep(1)
            return
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.requests = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


@pytest.fixture
def base(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize("name", ["a.png", "a%20b.png?size=large", "a b.png", "ü.png", "moved"])
def test_an_image_at_an_address_is_the_image(name: str, base: str) -> None:
    np.testing.assert_array_equal(np.asarray(to_rgb(f"{base}/{name}")), PIXELS)
    # A path that was made of an address has one slash of two.
    np.testing.assert_array_equal(np.asarray(to_rgb(Path(f"{base}/{name}"))), PIXELS)


def test_the_server_is_told_who_asks(base: str, server: ThreadingHTTPServer) -> None:
    to_rgb(f"{base}/who.png")
    path, agent = server.requests[-1]  # type: ignore[attr-defined]
    assert path == "/who.png"
    assert agent.startswith(f"groupdetr/{__version__}")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("nothing.png", "the server answers 404"),
        ("page.png", "this is a web page and not the file that it offers"),
        ("cut.png", "could not be downloaded|the download ended after"),
    ],
)
def test_what_is_not_there_or_no_image_is_named_with_its_address(
    name: str, what: str, base: str
) -> None:
    with pytest.raises(DataError, match=what) as refused:
        to_rgb(f"{base}/{name}")
    assert refused.value.where == f"{base}/{name}"
    assert refused.value.remedy


@pytest.mark.parametrize("name", ["a.png", "endless"])
def test_a_file_that_is_too_large_is_given_up(name: str, base: str) -> None:
    """One server says the size before, and the other one never ends."""
    with pytest.raises(DataError, match="more than 0 MiB"), downloaded(f"{base}/{name}", 2000):
        pass


def test_a_server_that_falls_silent_is_given_up(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "READ_SECONDS", 0.2)
    with pytest.raises(DataError, match="could not be downloaded"):
        to_rgb(f"{base}/silent.png")


def test_without_a_network_it_is_known_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for the address of a name may take half a minute, and no timeout applies to it."""

    def wait(*_: object, **__: object) -> None:
        never.wait(60)
        raise OSError("too late")

    never = threading.Event()
    monkeypatch.setattr(downloads, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr("socket.create_connection", wait)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"cannot be reached: no answer in 0\.3"):
        to_rgb("https://example.com/a.jpg")
    assert time.monotonic() - start < 30
    never.set()


def test_the_file_is_removed_afterwards(base: str) -> None:
    with downloaded(f"{base}/a.png", 2**20) as path:
        assert path.name == "a.png"
        assert path.stat().st_size > 1000
    assert not path.parent.exists()


def test_addresses_and_the_names_in_them() -> None:
    assert is_address("HTTPS://example.com")
    assert not is_address("ftp://example.com/a.jpg")
    assert not is_address("https.jpg")
    assert name_in_address("https://example.com/a/b%20c.jpg?d=e/f#g") == "b c.jpg"
    assert name_in_address("https://example.com/a/..%2F..%2Fb") == "b"
    assert name_in_address("https://example.com") == "download"
    long = "a" * 300
    assert name_in_address(f"https://example.com/{long}.mp4") == f"{long[:196]}.mp4"
