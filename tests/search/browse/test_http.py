"""The server answers its own page only, and bounds what it reads."""

import socket
import time

import pytest

from clipkit.errors import OutputError
from clipkit.search.browse import http
from clipkit.search.browse.http import Server
from tests.search.browse.conftest import Client


def test_it_listens_on_this_machine_only(client: Client) -> None:
    assert client.server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:9000"}, 200),  # a port forwarded by ssh
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8470"}, 403),
        ({"Host": "evil.example:127.0.0.1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "localhost:9000", "Origin": "http://localhost:9000"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Cookie": ""}, 401),
        ({"Cookie": "clipkit-1=x"}, 401),
        ({"Cookie": "clipkit-{port}=wrong"}, 401),
    ],
)
@pytest.mark.parametrize("path", ["/api/about", "/", "/0/thumbnail/0"])
def test_other_hosts_sites_and_users_are_refused(
    path: str, headers: dict[str, str], status: int, client: Client
) -> None:
    sent = {name: value.replace("{port}", str(client.server.server_port)) for name, value in headers.items()}
    assert client.ask("GET", path, headers=sent)[0] == status


@pytest.mark.parametrize(
    "path", ["/api/list", "/api/map", "/api/compare", "/api/differences", "/api/image", "/api/drop"]
)
def test_other_sites_cannot_send_anything(path: str, client: Client) -> None:
    """A form or script of another site can send plain text, with or without cookies; it is refused."""
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert client.ask("POST", path, b"{}", {"Content-Type": "text/plain", **headers})[0] == 403
    assert client.ask("POST", path, b"{}", {"Cookie": ""})[0] == 401
    status, content, _ = client.ask("POST", path, b'{"path": "/etc/passwd"}')
    assert (status, b"root:" in content) == (400, False)


def test_the_printed_address_sets_the_cookie(client: Client) -> None:
    path = client.server.address.partition(client.host)[2]
    status, _, headers = client.ask("GET", path, headers={"Cookie": "", "Sec-Fetch-Site": "none"})
    assert (status, headers["Location"]) == (303, "/")
    assert "HttpOnly" in headers["Set-Cookie"]
    assert "SameSite=Strict" in headers["Set-Cookie"]
    assert headers["Set-Cookie"].startswith(client.cookie["Cookie"])
    assert client.ask("GET", "/?token=wrong", headers={"Cookie": ""})[0] == 401


@pytest.mark.parametrize("path", ["/", "/page.js", "/0/thumbnail/1", "/nothing"])
def test_every_answer_forbids_foreign_scripts_frames_and_sniffing(path: str, client: Client) -> None:
    headers = client.ask("GET", path)[2]
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    ("length", "status"),
    [(str(http.MOST_BYTES + 1), b"413"), ("9" * 400, b"413"), ("-1", b"411"), ("x", b"411"), ("²", b"411")],
)
def test_a_body_too_large_is_refused_before_it_is_read(length: str, status: bytes, client: Client) -> None:
    assert sent(client, f"POST /api/image HTTP/1.0\r\n{standard(client)}Content-Length: {length}\r\n\r\n") == status


def test_malformed_requests_are_refused(client: Client) -> None:
    assert sent(client, f"GET /{'a' * 70_000} HTTP/1.0\r\n\r\n") == b"414"
    assert sent(client, "GET / HTTP/1.0\r\n" + "X: 1\r\n" * 500 + "\r\n") == b"431"
    assert sent(client, "GET / HTTP/1.0\r\nHost: localhost\r\nHost: evil.example\r\n\r\n") == b"403"
    assert sent(client, f"POST /api/list HTTP/1.0\r\n{standard(client)}Transfer-Encoding: chunked\r\n\r\n") == b"411"
    assert sent(client, f"DELETE / HTTP/1.0\r\n{standard(client)}\r\n") == b"501"


def standard(client: Client) -> str:
    return f"Host: {client.host}\r\nCookie: {client.cookie['Cookie']}\r\n"


def sent(client: Client, request: str) -> bytes:
    """Send bytes; return the status of the answer."""
    with socket.create_connection(("127.0.0.1", client.server.server_port), timeout=20) as connection:
        connection.sendall(request.encode())
        return connection.recv(100).split(b" ")[1]


def test_a_request_that_does_not_arrive_is_ended(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_SECONDS", 0.2)
    address = ("127.0.0.1", client.server.server_port)
    with socket.create_connection(address, timeout=20) as connection, pytest.raises(ConnectionError):
        drip(connection)
    assert client.ask("GET", "/api/about")[0] == 200
    assert not client.server._arriving


def drip(connection: socket.socket, seconds: float = 10) -> None:
    """Send a byte now and then, which would restart a timeout per read."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection.sendall(b"x")
        time.sleep(0.05)


def test_connections_are_bounded(client: Client) -> None:
    free = client.server._free
    opened = [socket.create_connection(("127.0.0.1", client.server.server_port)) for _ in range(4)]
    end = time.monotonic() + 10
    while free._value > http._CONNECTIONS - 4 and time.monotonic() < end:
        time.sleep(0.01)
    assert free._value == http._CONNECTIONS - 4
    for connection in opened:
        connection.close()
    while free._value < http._CONNECTIONS and time.monotonic() < end:
        time.sleep(0.01)
    assert free._value == http._CONNECTIONS


def test_a_taken_port_is_one_line(client: Client) -> None:
    with pytest.raises(OutputError, match=str(client.server.server_port)):
        Server(client.server.server_port, client.server.answer)
