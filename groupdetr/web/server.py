"""The HTTP server of `groupdetr ui`: routes, and who may ask.

It is meant for the person at this machine. A page of another site, open in the same browser, must
neither read images nor start work:

- The header Host has to name this machine, so that a domain that is made to point at it
  ("DNS rebinding") is refused.
- What a browser marks as coming from another site is refused.
- No path comes from a request: images of the dataset have numbers.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import math
import socket
import threading
import webbrowser
from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from groupdetr.console.output import create_console
from groupdetr.errors import DataError, GroupDETRError, UsageError
from groupdetr.report.style import CSS
from groupdetr.structures.json_object import JsonObject
from groupdetr.web.mistakes import KINDS
from groupdetr.web.session import PAGE_SIZE, WebSession

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

DEFAULT_PORT = 7860
NUM_PORTS = 50  # that are tried if no port is named
MAX_UPLOAD = 64 << 20  # bytes of an image file
# The page loads from this server only, runs no script in its HTML, and is in no frame of others.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
STOP_SECONDS = 10  # that requests have to end in when the server stops


class WebServer:
    """A page that is served until `close` is called, or its ``with`` block ends.

    >>> with groupdetr.ui("runs/mine") as page:
    ...     print(page.address)
    ...     page.wait()
    """

    def __init__(self, session: WebSession, listening: socket.socket, host: str) -> None:
        import uvicorn

        self.session = session
        self.host = host
        self.port: int = listening.getsockname()[1]
        config = uvicorn.Config(
            create_app(session, host),
            http="h11",
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        self._server: uvicorn.Server = uvicorn.Server(config)
        # Not `Thread.join`: before Python 3.13, a thread counts as ended once Ctrl-C interrupts it.
        self._ended = threading.Event()
        threading.Thread(target=self._run, args=(listening,), daemon=True).start()

    def _run(self, listening: socket.socket) -> None:
        try:
            self._server.run([listening])
        finally:
            self._ended.set()

    @property
    def address(self) -> str:
        """The address to open in a browser of this machine."""
        name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}/"

    def open_browser(self) -> None:
        """Open the page in the browser."""
        webbrowser.open(self.address)

    def wait(self) -> None:
        """Wait until the server ends, as it does if Ctrl-C is pressed: `KeyboardInterrupt`."""
        try:
            # On Windows, Ctrl-C does not end a wait without a limit.
            while not self._ended.wait(0.5):
                pass
        finally:
            self.close()

    def close(self) -> None:
        """End the server, and what it computes."""
        self._server.should_exit = True
        if self.session.validation is not None:
            self.session.validation.stop()
        self._ended.wait()
        self.session.close()

    def __enter__(self) -> WebServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def expect_installed() -> None:
    """Raise `UsageError` unless the libraries of the server are installed."""
    try:
        import starlette
        import uvicorn
    except ImportError as error:
        raise UsageError(
            f"{error.name or 'a library'} is not installed, which serves the page",
            remedy="pip install 'groupdetr[ui]'",
        ) from error
    del starlette, uvicorn


def listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens at a host, which is a name or an address of this machine.

    ``port`` None is `DEFAULT_PORT`, or the next one that is free; 0 is any free port. `UsageError`
    if the port is taken, or the host is not of this machine.
    """
    ports = [port] if port is not None else range(DEFAULT_PORT, DEFAULT_PORT + NUM_PORTS)
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"there is no such host: {getattr(error, 'strerror', None) or error}",
            host,
            "leave out --host, or name an address of this machine, such as 0.0.0.0 for all of them",
        ) from error
    # "::" stands for all addresses of this machine, also those of IPv4.
    dualstack = address[0] == "::" and socket.has_dualstack_ipv6()
    for candidate in ports:
        try:
            return socket.create_server(
                (address[0], candidate), family=family, backlog=128, dualstack_ipv6=dualstack
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port is not None:
                raise _cannot_listen(error, host, candidate) from error
    raise UsageError(
        f"the ports {DEFAULT_PORT} to {DEFAULT_PORT + NUM_PORTS - 1} are all in use",
        remedy="name another one: --port PORT; 0 is any free port",
    )


def _cannot_listen(error: OSError, host: str, port: int) -> UsageError:
    where = f"{host}, port {port}"
    if error.errno == errno.EADDRINUSE:
        remedy = "name another port, or leave out --port to use the next one that is free"
        return UsageError("another program uses this port", where, remedy)
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = "name a port from 1024 on: --port PORT"
        return UsageError("this port needs the rights of an administrator", where, remedy)
    return UsageError(
        f"this machine cannot serve a page there: {error.strerror or error}",
        where,
        "leave out --host, or name an address of this machine, such as 0.0.0.0 for all of them",
    )


def is_loopback(host: str) -> bool:
    """True if only programs of this machine can connect to a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def serve(session: WebSession, host: str, listening: socket.socket) -> WebServer:
    """Return the running server of a session, and print where it is."""
    console = create_console()
    server = WebServer(session, listening, host)
    console.print(f"the page is at {server.address}")
    if not is_loopback(host):
        console.print(
            f"warning: with --host {host}, everybody who can reach this machine over the network "
            "can use the page and see the images of the dataset; it asks for no password"
        )
    return server


def create_app(session: WebSession, host: str) -> Starlette:
    """Return the application that answers the requests of the page."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect
    from starlette.responses import Response
    from starlette.routing import Route

    # Functions without ``async`` run in threads, so the page stays alive while the network runs.
    routes: list[Route] = []
    for path, (name, media_type) in PAGE_FILES.items():
        content = resources.files("groupdetr.web").joinpath("page", name).read_bytes()
        routes.append(Route(path, _static(content, media_type)))
    routes.append(Route("/style.css", _static(CSS.encode(), "text/css")))

    def info(_request: Request) -> Response:
        return _json(session.info())

    async def detect(request: Request) -> Response:
        content = await _read_body(request)
        if content is None:
            megabytes = MAX_UPLOAD >> 20
            what = f"the file has more than {megabytes} MiB"
            return _error(DataError(what, remedy="scale the image down or cut it into tiles"), 413)
        return _json(await run_in_threadpool(session.detect, content))

    def start(_request: Request) -> Response:
        if session.validation is None:
            return _error(UsageError("there is no validation set", remedy=session.no_data), 404)
        session.validation.start()
        return _json(session.validation.progress())

    def progress(_request: Request) -> Response:
        if session.validation is None:
            return _error(UsageError("there is no validation set", remedy=session.no_data), 404)
        return _json(session.validation.progress())

    def images(request: Request) -> Response:
        score = _number(request, "score", session.detector.score)
        return _json(session.images(score, _label(request)))

    def errors(request: Request) -> Response:
        content = session.errors(
            score=_number(request, "score", session.detector.score),
            kind=request.query_params.get("kind", KINDS[0]),
            label=_label(request),
            start=int(_number(request, "start", 0)),
            count=int(_number(request, "count", PAGE_SIZE)),
        )
        return _json(content)

    def image(request: Request) -> Response:
        return _json(session.image(request.path_params["index"]))

    def image_groups(request: Request) -> Response:
        return _json(session.image_groups(request.path_params["index"]))

    def image_file(request: Request) -> Response:
        return _jpeg(session.image_file(request.path_params["index"]))

    def thumbnail(request: Request) -> Response:
        return _jpeg(session.thumbnail(request.path_params["index"]))

    def crop(request: Request) -> Response:
        x0, y0, x1, y1 = (_number(request, name, 0) for name in ("x0", "y0", "x1", "y1"))
        kind = request.query_params.get("kind", KINDS[0])
        return _jpeg(session.crop(request.path_params["index"], (x0, y0, x1, y1), kind))

    def _jpeg(content: bytes) -> Response:
        return Response(content, media_type="image/jpeg")

    def _error(error: GroupDETRError, status: int) -> Response:
        content = {"error": error.what, "where": error.where, "remedy": error.remedy}
        return _json(content, status)

    def on_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, GroupDETRError)
        return _error(error, 422 if isinstance(error, DataError) else 400)

    def on_failure(_request: Request, error: Exception) -> Response:
        # The traceback is printed in the terminal.
        what = f"the server has failed: {type(error).__name__}: {error}"
        return _error(GroupDETRError(what), 500)

    def on_disconnect(_request: Request, _error: Exception) -> Response:
        return Response(status_code=400)  # Nobody waits for it: the page was closed.

    routes += [
        Route("/api/info", info),
        Route("/api/detect", detect, methods=["POST"]),
        Route("/api/validation", start, methods=["POST"]),
        Route("/api/validation", progress),
        Route("/api/errors", errors),
        Route("/api/images", images),
        Route("/api/images/{index:int}", image),
        Route("/api/images/{index:int}/groups", image_groups),
        Route("/api/images/{index:int}/file", image_file),
        Route("/api/images/{index:int}/thumbnail", thumbnail),
        Route("/api/images/{index:int}/crop", crop),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, host=host)],
        exception_handlers={
            GroupDETRError: on_error,
            ClientDisconnect: on_disconnect,
            Exception: on_failure,
        },
    )


def _json(content: JsonObject, status: int = 200) -> Response:
    """Return an answer in JSON.

    All characters beyond ASCII are escaped: the name of a file may have halves of surrogate pairs,
    which UTF-8 does not have.
    """
    from starlette.responses import Response

    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(text, status, media_type="application/json")


def _static(content: bytes, media_type: str) -> Callable[[Request], Response]:
    from starlette.responses import Response

    def answer(_request: Request) -> Response:
        return Response(content, media_type=media_type)

    return answer


async def _read_body(request: Request) -> bytes | None:
    """Return the body of a request, None if it is longer than `MAX_UPLOAD`."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_UPLOAD:
        return None
    parts = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_UPLOAD:
            return None
        parts.append(part)
    return b"".join(parts)


def _number(request: Request, name: str, default: float) -> float:
    """Return a number of the query. `UsageError` if it is something else."""
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > 1e9:
        raise UsageError(f"{name} is not a number")
    return value


def _label(request: Request) -> int | None:
    """Return the class of the query, None if it names none."""
    return int(_number(request, "label", 0)) if request.query_params.get("label") else None


# Who may ask


def refusal(host: str, path: str, header: Callable[[str], str | None]) -> str | None:
    """Return why a request is refused, None if it is allowed.

    ``host`` is where the server listens, and ``header`` returns a header of the request by its name
    in lower case.
    """
    named = header("host") or ""
    if not _names_this_machine(named, host):
        return f"the header Host names another machine: {named[:80]!r}"
    site = header("sec-fetch-site")
    # Somebody may follow a link to the page itself.
    if site not in (None, "same-origin", "none") and path != "/":
        return "another site asks for it"
    origin = header("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != named.lower():
        return "another site asks for it"
    return None


def _names_this_machine(named: str, host: str) -> bool:
    """True if a header Host names this machine.

    A server that only this machine can reach allows its loopback addresses. Other servers allow all
    addresses, which no one can make point elsewhere, and the name of the machine. The host that the
    server was started with is always allowed.
    """
    try:
        name = urlsplit(f"//{named}").hostname or ""
    except ValueError:
        return False
    if name in ("localhost", host.lower()):
        return True
    if not is_loopback(host) and name == socket.gethostname().lower():
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or not is_loopback(host)


class Guard:
    """The middleware that refuses what `refusal` names, and adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app = app
        self.host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.datastructures import Headers, MutableHeaders

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self.app
        reason = refusal(self.host, scope["path"], Headers(scope=scope).get)
        if reason is not None:
            answer = _json({"error": reason, "where": "", "remedy": ""}, 403)
        await answer(scope, receive, send_with_headers)
