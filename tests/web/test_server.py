"""The server of the page: what it answers, whom it refuses, and how it starts and ends."""

from __future__ import annotations

import _thread
import asyncio
import base64
import http.client
import io
import json
import re
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

import groupdetr
from groupdetr.cli.main import main
from groupdetr.errors import UsageError
from groupdetr.web import server as server_module
from groupdetr.web.server import WebServer, listen, refusal
from tests.deployment.exports import write_weights


def ask(
    server: WebServer,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """Send a request, and return the status, the headers and the body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        method = "GET" if body is None else "POST"
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return response.status, names, response.read()
    finally:
        connection.close()


def ask_json(server: WebServer, path: str, body: bytes | None = None) -> Any:
    status, _, content = ask(server, path, body)
    assert status == 200, content
    return json.loads(content)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photo(shapes: Path) -> Image.Image:
    return Image.open(min((shapes / "images/val").iterdir())).convert("RGB")


# Images of the user


def test_an_upload_has_the_detections_of_predict_and_those_of_every_group(
    server: WebServer, photo: Image.Image
) -> None:
    answer = ask_json(server, "/api/detect", encoded(photo, "PNG"))
    assert (answer["width"], answer["height"]) == photo.size
    primary, other = answer["groups"]
    result = server.session.detector.predict(photo, 0.0)[0]
    assert len(result.scores) == len(primary["detections"]) > 0
    rows = zip(primary["detections"], result.labels, result.scores, result.boxes)
    for row, label, score, box in rows:
        assert row["label"] == label
        assert row["score"] == pytest.approx(score, abs=1e-6)
        assert row["box"] == pytest.approx(box, abs=0.01)
    assert other["detections"] != primary["detections"]


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_images_of_every_mode_are_read(server: WebServer, photo: Image.Image, mode: str) -> None:
    image = photo.convert("RGBA")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    answer = ask_json(server, "/api/detect", encoded(image, "TIFF"))
    assert (answer["width"], answer["height"]) == photo.size


def test_an_image_is_turned_as_its_exif_orientation_says(
    server: WebServer, photo: Image.Image
) -> None:
    wide = photo.resize((64, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    answer = ask_json(server, "/api/detect", encoded(wide, "JPEG", exif=exif))
    assert (answer["width"], answer["height"]) == (32, 64)
    with Image.open(io.BytesIO(_data_of(answer["address"]))) as shown:
        assert shown.size == (32, 64)


def _data_of(address: str) -> bytes:
    return base64.b64decode(address.partition(",")[2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"hello", "this is a text file, and not an image|not an image"),
    ],
)
def test_what_is_not_an_image_is_refused(server: WebServer, content: bytes, message: str) -> None:
    status, _, body = ask(server, "/api/detect", content)
    assert status == 422
    error = json.loads(body)
    assert re.search(message, error["error"]), error
    assert "tmp" not in body.decode(), "the name of the temporary file is nothing to the user"


def test_a_decompression_bomb_is_refused(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    bomb = encoded(Image.new("1", (100, 100)), "PNG")
    status, _, body = ask(server, "/api/detect", bomb)
    assert status == 422
    assert "more than 2,000 pixels" in json.loads(body)["error"]


def test_an_upload_that_is_too_large_is_refused_whether_or_not_it_says_so(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_UPLOAD", 1 << 20)
    assert ask(server, "/api/detect", bytes((1 << 20) + 1))[0] == 413
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    chunks = (bytes(1 << 16) for _ in range(17))
    connection.request("POST", "/api/detect", chunks, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


# The validation set


def test_the_page_has_thumbnails_crops_and_annotations_of_the_validation_set(
    server: WebServer,
) -> None:
    images = ask_json(server, "/api/images?score=0.01")["images"]
    assert len(images) == 6
    assert [row["errors"] for row in images] == sorted(
        (row["errors"] for row in images), reverse=True
    )
    split = server.session.validation.split  # type: ignore[union-attr]
    assert split is not None
    for index, record in enumerate(split.records):
        answer = ask_json(server, f"/api/images/{index}")
        assert len(answer["truth"]) == len(record.labels)
        for part in ("file", "thumbnail", "crop?x0=4&y0=4&x1=30&y1=30&kind=missed"):
            status, headers, content = ask(server, f"/api/images/{index}/{part}")
            assert (status, headers["content-type"]) == (200, "image/jpeg")
            Image.open(io.BytesIO(content)).load()


def test_all_pages_of_errors_together_are_all_errors(server: WebServer) -> None:
    first = ask_json(server, "/api/errors?score=0.01&kind=false_positive&count=3")
    total = first["total"]
    assert total == first["summary"]["false_positive"] > 3
    items = []
    for start in range(0, total, 3):
        query = f"score=0.01&kind=false_positive&count=3&start={start}"
        items += ask_json(server, f"/api/errors?{query}")["items"]
    everything = ask_json(server, "/api/errors?score=0.01&kind=false_positive&count=500")
    assert items == everything["items"]
    assert len(items) == total


def test_paths_lead_to_images_by_their_number_only(server: WebServer) -> None:
    for path, status in (
        ("/api/images/99", 400),
        ("/api/images/99/file", 400),
        ("/api/images/-1/file", 404),
        ("/api/images/..%2f..%2fconfig.yaml/file", 404),
        ("/../../config.yaml", 404),
        ("/page/../server.py", 404),
        ("/api/errors?score=x", 400),
        ("/api/errors?score=nan", 400),
        ("/api/errors?kind=other", 400),
        ("/api/images/0/crop?x0=inf", 400),
        ("/api/images/0/crop?x0=0&y0=0&x1=0&y1=0", 200),
        ("/api/images/0/crop?x0=-50&y0=-9&x1=999&y1=99999", 200),
    ):
        assert ask(server, path)[0] == status, path


# Who may ask


def test_requests_of_other_sites_are_refused(server: WebServer) -> None:
    """A page of another site can send all of these, in a browser of this machine."""
    requests = (("/api/info", None), ("/api/detect", b"x"), ("/api/images/0/file", None))
    for headers in (
        {"Host": "evil.example"},
        {"Host": "evil.example:7860"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "192.168.0.9"},
        {"Host": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        for path, body in requests:
            status, _, content = ask(server, path, body, headers)
            assert status == 403, (path, headers)
            assert b"run" not in content


def test_requests_of_the_page_itself_are_answered(server: WebServer) -> None:
    for name in ("127.0.0.1", "localhost", "LOCALHOST"):
        host = f"{name}:{server.port}"
        headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert ask(server, "/api/info", headers=headers)[0] == 200
    assert ask(server, "/", headers={"Sec-Fetch-Site": "cross-site"})[0] == 200, "a link"


def test_a_server_for_other_machines_is_asked_by_its_address_or_name() -> None:
    def reason(host: str, named: str) -> str | None:
        return refusal(host, "/api/info", {"host": named}.get)

    assert reason("0.0.0.0", "192.168.0.9:7860") is None
    assert reason("0.0.0.0", "[fe80::1]:7860") is None
    assert reason("0.0.0.0", f"{socket.gethostname()}:7860") is None
    assert reason("gpu-box", "gpu-box:7860") is None
    assert reason("0.0.0.0", "evil.example:7860")
    assert reason("127.0.0.1", "[::1]:7860") is None
    assert reason("127.0.0.1", "192.168.0.9:7860")


def test_nothing_is_loaded_from_elsewhere_or_kept(server: WebServer) -> None:
    for path in ("/", "/page.js", "/page.css", "/style.css", "/api/info", "/missing"):
        _, headers, content = ask(server, path)
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers
        assert b"://" not in content, path


# Threads, start and end


def test_the_page_stays_alive_while_the_network_runs(server: WebServer, photo: Image.Image) -> None:
    with server.session.lock:  # as if an image took long
        answers: list[int] = []
        body = encoded(photo, "PNG")
        thread = threading.Thread(
            target=lambda: answers.append(ask(server, "/api/detect", body)[0])
        )
        thread.start()
        assert ask_json(server, "/api/info")["name"] == "run"
        assert ask(server, "/api/images/0/thumbnail")[0] == 200
        assert not answers
    thread.join(60)
    assert answers == [200]


def test_only_this_machine_can_connect_unless_told_otherwise(
    server: WebServer, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert server.address.startswith("http://127.0.0.1:")
    listening = listen("127.0.0.1", 0)
    assert listening.getsockname()[0] == "127.0.0.1"
    listening.close()
    with groupdetr.ui(run, host="0.0.0.0", port=0, device="cpu") as page:
        assert page.address.startswith("http://127.0.0.1:")
    output = " ".join(capsys.readouterr().out.split())
    assert "warning: with --host 0.0.0.0, everybody who can reach this machine" in output


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_all_addresses_of_ipv6_are_also_those_of_ipv4() -> None:
    with listen("::", 0) as listening:
        for host in ("::1", "127.0.0.1"):
            socket.create_connection((host, listening.getsockname()[1]), timeout=60).close()


def test_a_page_that_is_closed_during_an_upload_is_no_failure(server: WebServer) -> None:
    """The server would print a failure, which this application raises."""
    host = f"127.0.0.1:{server.port}".encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/detect",
        "query_string": b"",
        "headers": [(b"host", host), (b"content-length", b"1000")],
    }
    messages = iter([{"type": "http.request", "body": b"a", "more_body": True}])
    statuses = []

    async def receive() -> dict[str, Any]:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    asyncio.run(server_module.create_app(server.session, "127.0.0.1")(scope, receive, send))
    assert statuses[0] == 400


def test_names_of_files_that_are_not_in_utf8_are_sent(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python keeps the bytes of such a name as halves of surrogate pairs."""
    content = {"images": [{"image": 0, "file_name": "caf\udce9 \u00e9.jpg"}]}
    monkeypatch.setattr(server.session, "images", lambda *_: content)
    assert ask_json(server, "/api/images") == content


def test_a_taken_port_is_an_error_if_it_was_named_and_skipped_otherwise(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["ui", str(run), "--port", str(port)]) == 2
        assert "another program uses this port" in capsys.readouterr().err
        monkeypatch.setattr(server_module, "DEFAULT_PORT", port)
        with listen("127.0.0.1", None) as following:
            assert port < following.getsockname()[1] < port + server_module.NUM_PORTS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "port"),
        (["--host", "no such host"], "there is no such host"),
        (["--host", "203.0.113.9", "--port", "0"], "this machine cannot serve a page there"),
        (["--images", "photos"], "--images has an effect with --data only"),
        (["--imgsz", "3"], "imgsz"),
    ],
)
def test_options_that_cannot_be_followed_are_errors(
    run: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ui", str(run), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_detector_of_scenes_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write_weights(tmp_path / "scenes.safetensors", "petr-tiny", num_classes=10)
    assert main(["ui", str(weights)]) == 2
    error = capsys.readouterr().err
    assert "this detector takes scenes of several cameras" in error
    assert "groupdetr predict RUN" in error


def test_without_the_extra_the_error_says_how_to_install_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UsageError) as error:
        groupdetr.ui(run, port=0)
    assert error.value.remedy == "pip install 'groupdetr[ui]'"


def test_images_that_wait_for_the_network_do_not_run_after_the_end(
    run: Path, photo: Image.Image
) -> None:
    page = groupdetr.ui(run, port=0, device="cpu")
    errors: list[str] = []

    def detect() -> None:
        try:
            page.session.detect(encoded(photo, "PNG"))
        except UsageError as error:
            errors.append(error.what)

    waiting = threading.Thread(target=detect)
    with page.session.lock:
        waiting.start()
        closing = threading.Thread(target=page.close)
        closing.start()
        while not page.session.is_closed:
            time.sleep(0.01)
    closing.join(60)
    waiting.join(60)
    assert errors == ["the server has ended"]


def test_closing_ends_the_computation_and_frees_the_port(run: Path) -> None:
    page = groupdetr.ui(run, port=0, device="cpu")
    assert page.session.validation is not None
    page.session.validation.start()
    port = page.port
    page.close()
    page.close()  # a second time does nothing
    listen("127.0.0.1", port).close()
    thread = page.session.validation._thread
    assert thread is not None
    assert not thread.is_alive()


def test_ctrl_c_ends_the_command_with_the_exit_code_of_the_others(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def open_browser(address: str) -> None:
        opened.append(address)
        with urlopen(address, timeout=60) as page:
            assert b"groupdetr ui" in page.read()

    def wait(page: WebServer) -> None:
        """Wait as ever, and press Ctrl-C once the wait has begun."""
        until_end = page._ended.wait

        def interrupted(timeout: float | None = None) -> bool:
            page._ended.wait = until_end  # type: ignore[method-assign]
            _thread.interrupt_main()
            return until_end(timeout)

        page._ended.wait = interrupted  # type: ignore[method-assign]
        wait_for_end(page)

    wait_for_end = WebServer.wait
    monkeypatch.setattr(WebServer, "wait", wait)
    monkeypatch.setattr(server_module.webbrowser, "open", open_browser)
    assert main(["ui", str(run), "--port", "0", "--device", "cpu", "--open"]) == 130
    output = capsys.readouterr()
    assert output.out == f"the page is at {opened[0]}\n"
    assert output.err == "stopped\n"
    listen("127.0.0.1", int(opened[0].split(":")[2].strip("/"))).close()
