"""A small Hub server on loopback that answers the real client from folders."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_right"


@dataclass
class Repository:
    """Revisions by name, each a folder; access rights."""

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
    """Repositories by name, and the requests that they received."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Range header of each request."""
    break_once: set[str] = field(default_factory=set)
    """Files whose first transfer is interrupted."""
    full: bool = False
    """True if there is no storage left for a commit."""
    url: str = ""
    uploads: Path | None = None
    """Folder for pushed files; None: pushing is not allowed."""
    read_only: bool = False
    """True if the token has no write access."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Uploaded large files by SHA-256."""
    received: list[tuple[str, int]] = field(default_factory=list)
    """SHA-256 and bytes of each transfer of a large file, including interrupted ones."""
    commits: list[dict[str, Any]] = field(default_factory=list)

    def files_sent(self, repository: str) -> list[str]:
        """Return names of the files whose content was sent."""
        prefix = f"/{repository}/resolve/"
        paths = [path for method, path, _ in self.requests if method == "GET" and path.startswith(prefix)]
        return sorted({path.removeprefix(prefix).partition("/")[2] for path in paths})


def _wrong_in_header(card: str) -> list[str]:
    """Return the errors that the Hub's validation finds in a card's header."""
    parts = card.split("---\n")
    try:
        header = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else None
    except yaml.YAMLError as error:
        return [str(error)]
    if not isinstance(header, dict):
        return ["there is no header"]
    bases = header.get("base_model", [])
    bases = [bases] if isinstance(bases, str) else bases
    wrong = [
        f'"base_model" with value "{base}" is not valid' for base in bases if not re.fullmatch(r"[\w.-]+/[\w.-]+", base)
    ]
    wrong += [f'"{key}" must be a string' for key in _STRINGS if not isinstance(header.get(key, ""), str)]
    for model in header.get("model-index", []):
        for result in model["results"]:
            named = (
                result["task"].get("type"),
                result["dataset"].get("type"),
                result["dataset"].get("name"),
                model["name"],
            )
            if not all(named) or not all({"type", "value"} <= metric.keys() for metric in result["metrics"]):
                wrong.append('"model-index" lacks something')
    return wrong


_STRINGS = ("license", "license_name", "license_link", "library_name", "pipeline_tag")


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        listed: tuple[str, bool, list[str] | None]
        status = 200

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            path = unquote(urlsplit(self.path).path)
            answer = self.write_answers(path, content)
            if answer is None:
                return self.answer(with_body=True, paths=json.loads(content or b"{}").get("paths", []))
            hub.requests.append((self.command, path, None))
            if isinstance(answer, int):
                return self.refuse(answer, "Storage limit reached" if hub.full else "Refused")
            status, self.status = self.status, 200
            return self.send(json.dumps(answer).encode(), {"Content-Type": "application/json"}, True, status=status)

        def do_PUT(self) -> None:
            """Receive a large file, named by its SHA-256."""
            name = self.path.rpartition("/")[2]
            hub.requests.append((self.command, self.path, None))
            size = int(self.headers.get("Content-Length", "0"))
            breaks = f"PUT {size}" in hub.break_once
            content = self.rfile.read(size // 2 if breaks else size)
            hub.received.append((name, len(content)))
            if breaks:
                hub.break_once.discard(f"PUT {size}")
                self.close_connection = True
                self.connection.close()
                return
            assert hashlib.sha256(content).hexdigest() == name
            hub.objects[name] = content
            self.send(b"", {}, True)

        def write_answers(self, path: str, content: bytes) -> Any:
            """Answer of the API to a write request; None for other requests."""
            parts = path.strip("/").split("/")
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if path == "/api/validate-yaml":
                wrong = _wrong_in_header(json.loads(content)["content"])
                self.status = 400 if wrong else 200
                return {"errors": [{"message": message} for message in wrong], "warnings": []}
            if path == "/api/repos/create":
                if not known or hub.read_only:
                    return 403 if known else 401
                body = json.loads(content)
                name = f"{body.get('organization') or 'me'}/{body['name']}"
                if name in hub.repositories:
                    self.status = 409
                    return {"url": f"{hub.url}/{name}"}
                assert hub.uploads is not None
                (hub.uploads / name).mkdir(parents=True)
                # Older clients send "private": true instead of "visibility".
                private = body.get("private", body.get("visibility") == "private")
                hub.repositories[name] = Repository({"main": hub.uploads / name}, private=private)
                return {"url": f"{hub.url}/{name}"}
            name = "/".join(parts[2:4])
            if parts[:2] == ["api", "models"] and parts[4:5] == ["preupload"]:
                if not known or hub.read_only:
                    return 403 if known else 401
                files = json.loads(content)["files"]
                large = (".safetensors", ".bin", ".onnx")
                return {
                    "files": [
                        {
                            "path": file["path"], "shouldIgnore": False, "oid": None,
                            "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                        }
                        for file in files
                    ]
                }  # fmt: skip
            if path.endswith(".git/info/lfs/objects/batch"):
                objects = []
                for item in json.loads(content)["objects"]:
                    missing = item["oid"] not in hub.objects
                    actions = {"upload": {"href": f"{hub.url}/lfs/{item['oid']}", "header": {}}}
                    objects.append({**item, **({"actions": actions} if missing else {})})
                return {"transfer": "basic", "objects": objects}
            if parts[:2] == ["api", "models"] and parts[4:5] == ["commit"]:
                if not known or hub.read_only or hub.full:
                    return 403 if known else 401
                return self.commit(name, [json.loads(line) for line in content.splitlines()])
            return None

        def commit(self, name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
            folder = hub.repositories[name].revisions["main"]
            for line in lines:
                if line["key"] not in ("file", "lfsFile"):
                    continue
                file = folder / line["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                value = line["value"]
                large = line["key"] == "lfsFile"
                file.write_bytes(hub.objects[value["oid"]] if large else base64.b64decode(value["content"]))
            hub.commits.append({"repository": name, "lines": lines})
            oid = hashlib.sha1(json.dumps(lines).encode()).hexdigest()
            return {"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{name}/commit/{oid}", "hookOutput": ""}

        def answer(self, with_body: bool, paths: list[str] | None = None) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            parts = path.strip("/").split("/")
            if path == "/api/whoami-v2":
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.refuse(401, "Unauthorized")
                return self.send(b'{"name": "me", "type": "user", "orgs": []}', {}, with_body)
            if parts[-2:] == ["auth-check", "write"] and hub.read_only:
                return self.refuse(403, "Forbidden")
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

        def send(
            self, content: bytes, headers: dict[str, str], with_body: bool, breaks: bool = False, status: int = 200
        ) -> None:
            request = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
            start = int(request) if request else 0
            self.send_response(206 if request else status)
            if request:
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
