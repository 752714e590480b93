"""One server for all tests of the page, and a client that sends exactly what a test writes."""

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipkit.models import DualEncoder
from clipkit.search import Index
from clipkit.search.browse.app import App
from clipkit.search.browse.http import Server


class Client:
    """Client of a server, with its cookie."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.host = f"127.0.0.1:{server.server_port}"
        self.cookie = {"Cookie": f"{server.cookie}={server.token}"}

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        """Send a request as the page does; `headers` replace its headers, an empty value removes one."""
        connection = http.client.HTTPConnection(self.host, timeout=30)
        sent = {**self.cookie, "Sec-Fetch-Site": "same-origin", **(headers or {})}
        content = json.dumps(body) if isinstance(body, dict) else body
        connection.request(method, path, content, {name: value for name, value in sent.items() if value})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content, answer.headers

    def items(self, start: int = 0, count: int = 60, **query: Any) -> list[dict[str, Any]]:
        """Return the items of a view, when they are computed."""
        while True:
            status, content, _ = self.ask("POST", "/api/list", {"query": query, "start": start, "count": count})
            assert status == 200, content
            found = json.loads(content)
            if "items" in found:
                return list(found["items"])

    def posted(self, path: str, body: dict[str, Any], status: int = 200) -> dict[str, Any]:
        """Return the answer to a request, when it is computed."""
        while True:
            found_status, content, _ = self.ask("POST", path, body)
            assert found_status == status, content
            found = json.loads(content)
            if "working" not in found:
                return dict(found)

    def error(self, **query: Any) -> str:
        """Return the message about a query that is not valid."""
        status, content, _ = self.ask("POST", "/api/list", {"query": query})
        assert status == 400, content
        return str(json.loads(content)["error"])


@pytest.fixture(scope="module")
def browsed(index_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy of the index of 16 images, to which the server adds thumbnails."""
    return shutil.copytree(index_folder, tmp_path_factory.mktemp("browse") / "shapes.index")


@pytest.fixture(scope="module")
def client(browsed: Path, model: DualEncoder) -> Iterator[Client]:
    app = App([Index(browsed, model=model)])
    with Server(0, app.answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield Client(server)
        server.shutdown()
    app.close()
