"""HTTP server for one user on this machine, with limits on connections, sizes and times of requests.

The server listens on 127.0.0.1 only, and answers one request per connection. It refuses a request

- that names another host (against DNS rebinding),
- that comes from a page of another site (headers Origin and Sec-Fetch-Site), or
- without the cookie that the printed URL sets in the browser (against other users of the machine).
"""

import contextlib
import json
import logging
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from clipkit.errors import OutputError, UserError

log = logging.getLogger("clipkit")

HOST = "127.0.0.1"
MOST_BYTES = 32 << 20
"""Largest body of a request."""
_NAMES = (HOST, "localhost")
_CONNECTIONS = 32
_SECONDS = 30  # seconds to receive a request, and to send a response
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Request:
    """A request that has passed all checks."""

    method: str
    path: str
    body: bytes


@dataclass(frozen=True)
class Response:
    """Response to a request."""

    content: bytes
    kind: str = "application/json"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Any, status: int = 200) -> "Response":
        """Return a response that contains `values` as JSON."""
        return cls(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace"), status=status)


class Server(ThreadingHTTPServer):
    """HTTP server on a port of 127.0.0.1. The method `serve_forever` answers requests in threads.

    Args:
        port: port number. 0: any free port.
        answer: function that returns the response to a request. If the function raises a UserError, the page
            shows the message.

    Raises:
        OutputError: the port is in use or not allowed.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, answer: Callable[[Request], Response]) -> None:
        self.answer = answer
        self.token = secrets.token_urlsafe(24)
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        self._arriving: dict[socket.socket, float] = {}
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "a port is a number from 0 to 65535"
            raise OutputError(f"port {port} cannot be used ({reason}); give another port with --port") from None

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer asks the name server for the name of the machine
        self.server_name, self.server_port = HOST, self.server_address[1]

    @property
    def address(self) -> str:
        """Address to open in a browser on this machine."""
        return f"http://{HOST}:{self.server_port}/?token={self.token}"

    @property
    def cookie(self) -> str:
        """Name of the cookie that every request must contain.

        The name contains the port, because a browser sends the cookies of a host to all of its ports.
        """
        return f"clipkit-{self.server_port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(timeout=1):
            self.shutdown_request(request)
            return
        self._arriving[request] = time.monotonic() + _SECONDS
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.arrived(request)
            self._free.release()

    def arrived(self, request: socket.socket) -> None:
        """Record that the request of a connection has been read completely."""
        self._arriving.pop(request, None)

    def service_actions(self) -> None:
        """Close connections whose request takes too long to arrive."""
        for request, end in list(self._arriving.items()):
            if time.monotonic() > end:
                self.arrived(request)
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing when a connection breaks. `_Handler` reports all other errors."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = _SECONDS
    server_version, sys_version = "clipkit", ""

    def do_GET(self) -> None:
        self._send(self._checked())

    def do_POST(self) -> None:
        self._send(self._checked())

    def _checked(self) -> Response:
        refused = self._refusal()
        if refused is not None:
            return refused
        url = urlsplit(self.path)
        given = parse_qs(url.query).get("token", [""])[0]
        if self.command == "GET" and url.path == "/" and secrets.compare_digest(given.encode(), self._token):
            cookie = f"{self.server.cookie}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
            return Response(b"", status=303, headers={"Location": "/", "Set-Cookie": cookie})
        if not self._has_cookie():
            return Response(b"Open the address that clipkit browse printed.", "text/plain", 401)
        body = self._body()
        if isinstance(body, Response):
            return body
        self.server.arrived(self.connection)
        try:
            return self.server.answer(Request(self.command, url.path, body))
        except UserError as error:
            return Response.of({"error": str(error)}, 400)
        except MemoryError:
            return Response.of({"error": "clipkit browse is out of memory; close other programs and try again"}, 503)
        except Exception:
            log.exception("the request %s %s failed", self.command, url.path)
            return Response.of({"error": "internal error; see the message in the terminal of clipkit browse"}, 500)

    @property
    def _token(self) -> bytes:
        return self.server.token.encode()

    def _refusal(self) -> Response | None:
        """Return the error response if the request names another host or comes from another site; otherwise None."""
        hosts, origins = (self.headers.get_all(name) or [] for name in ("Host", "Origin"))
        host = hosts[0] if len(hosts) == 1 else ""
        if host.split(":")[0] not in _NAMES:
            return Response(
                b"The request names another host; open the address that clipkit browse printed.", "text/plain", 403
            )
        site = self.headers.get("Sec-Fetch-Site", "none")
        if any(origin != f"http://{host}" for origin in origins) or site not in ("same-origin", "none"):
            return Response(
                b"Requests from other sites are refused; open the address that clipkit browse printed.",
                "text/plain",
                403,
            )
        return None

    def _has_cookie(self) -> bool:
        parts = [part.strip().partition("=") for part in self.headers.get("Cookie", "").split(";")]
        values = [value for name, _, value in parts if name == self.server.cookie]
        return any(secrets.compare_digest(value.encode("utf-8", "replace"), self._token) for value in values)

    def _body(self) -> bytes | Response:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            return Response(b"The request has no valid length; reload the page.", "text/plain", 411)
        if len(length) > 12 or int(length) > MOST_BYTES:
            most = f"{MOST_BYTES >> 20} MiB"
            return Response.of({"error": f"the image or list is larger than {most}; give a smaller one"}, 413)
        body = self.rfile.read(int(length))
        return (
            body
            if len(body) == int(length)
            else Response(b"The request is incomplete; reload the page.", "text/plain", 400)
        )

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        for name, value in {"Cache-Control": "no-store", **_HEADERS, **response.headers}.items():
            self.send_header(name, value)
        charset = "; charset=utf-8" if response.kind.startswith(("text/", "application/")) else ""
        self.send_header("Content-Type", response.kind + charset)
        self.send_header("Content-Length", str(len(response.content)))
        self.end_headers()
        self.wfile.write(response.content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send an error response to a request that cannot be parsed."""
        self._send(Response((message or "error").encode("utf-8", "replace"), "text/plain", code))

    def log_message(self, format: str, *args: Any) -> None:
        """Suppress the line that the base class prints for each request."""
