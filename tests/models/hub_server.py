"""A small Hub on loopback: what the real client asks of the real one, from folders."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_right"


@dataclass
class Repository:
    """Its revisions, by name, each a folder; who may see it."""

    revisions: dict[str, Path]
    private: bool = False
    gated: bool = False

    def sha(self, revision: str) -> str:
        return hashlib.sha1(str(self.revisions[revision]).encode()).hexdigest()

    def folder(self, revision: str) -> Path | None:
        by_sha = {self.sha(name): folder for name, folder in self.revisions.items()}
        return self.revisions.get(revision) or by_sha.get(revision)


@dataclass
class Hub:
    """Repositories by name, and what was asked of them."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path, and Range where there was one."""
    break_once: set[str] = field(default_factory=set)
    """Files of which the first transfer ends in the middle."""
    url: str = ""

    def files_sent(self, repository: str) -> list[str]:
        """Names of the files whose content went out."""
        prefix = f"/{repository}/resolve/"
        paths = [path for method, path, _ in self.requests if method == "GET" and path.startswith(prefix)]
        return sorted({path.removeprefix(prefix).partition("/")[2] for path in paths})


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        listed: tuple[str, bool, list[str] | None]

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))) or b"{}")
            self.answer(with_body=True, paths=body.get("paths", []))

        def answer(self, with_body: bool, paths: list[str] | None = None) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            parts = path.strip("/").split("/")
            if parts[:1] == ["datasets"]:
                parts = parts[1:]
            if parts[:2] in (["api", "models"], ["api", "datasets"]):
                name, rest = "/".join(parts[2:4]), parts[4:]
                revision = rest[1] if rest[:1] in (["revision"], ["tree"], ["paths-info"]) else "main"
                if rest[:1] in (["tree"], ["paths-info"]):
                    deep = "true" in parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower()
                    self.listed = ("/".join(rest[2:]), deep, paths)
                    return self.with_repository(name, revision, "tree/", with_body)
                self.with_repository(name, revision, None, with_body)
            elif len(parts) > 4 and parts[2] == "resolve":
                self.with_repository("/".join(parts[:2]), parts[3], "/".join(parts[4:]), with_body)
            else:
                self.refuse(404, "EntryNotFound")
            return None

        def with_repository(self, name: str, revision: str, file: str | None, with_body: bool) -> None:
            repository = hub.repositories.get(name)
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if repository is None or (repository.private and not known):
                # The real one says 401 to who is not logged in, whether there is such a repository or not.
                return self.refuse(404 if known else 401, "RepoNotFound")
            folder = repository.folder(revision)
            if folder is None:
                return self.refuse(404, "RevisionNotFound")
            if file is None:
                return self.send(self.info(name, repository, revision, folder), {}, with_body)
            if file == "tree/":
                return self.send(self.tree(folder), {}, with_body)
            if repository.gated and not known:
                return self.refuse(403, "GatedRepo")
            if not (folder / file).is_file():
                return self.refuse(404, "EntryNotFound")
            content = (folder / file).read_bytes()
            sha = repository.sha(revision) if revision in repository.revisions else revision
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": sha,
                "Accept-Ranges": "bytes",
            }
            self.send(content, headers, with_body, breaks=file in hub.break_once)
            if with_body:
                hub.break_once.discard(file)
            return None

        def info(self, name: str, repository: Repository, revision: str, folder: Path) -> bytes:
            files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            sha = repository.sha(revision) if revision in repository.revisions else revision
            values = {
                "id": name, "modelId": name, "sha": sha, "private": repository.private,
                "gated": "manual" if repository.gated else False, "disabled": False, "downloads": 0, "likes": 0,
                "tags": [], "siblings": [{"rfilename": file} for file in files],
            }  # fmt: skip
            return json.dumps(values).encode()

        def tree(self, folder: Path) -> bytes:
            below, deep, paths = self.listed
            entries = []
            for path in sorted(folder.rglob("*")):
                name = str(path.relative_to(folder))
                inside = name.startswith(f"{below}/") if below else True
                direct = "/" not in name.removeprefix(f"{below}/" if below else "")
                if name in paths if paths is not None else inside and (deep or direct):
                    content = path.read_bytes() if path.is_file() else b""
                    kind = "file" if path.is_file() else "directory"
                    oid = hashlib.sha256(content).hexdigest()
                    entries.append({"type": kind, "path": name, "size": len(content), "oid": oid})
            return json.dumps(entries).encode()

        def send(self, content: bytes, headers: dict[str, str], with_body: bool, breaks: bool = False) -> None:
            asked = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
            start = int(asked) if asked else 0
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if with_body:
                rest = content[start:]
                self.wfile.write(rest[: len(rest) // 2] if breaks else rest)
                self.wfile.flush()
                if breaks:
                    self.close_connection = True
                    self.connection.close()

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
