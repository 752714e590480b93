"""Use the page of `clipkit browse` for a long time, and record memory and open files of the server, as JSON lines.

    python benchmarks/browsing_load.py dev_before.index dev_after.index [--minutes 60] [--pause 0.1] > load.jsonl

The requests are those of the page, in random order with random arguments: searches for words, images and rows in one
index and in both, all views, the map, thumbnails, lists, invalid requests, and connections that end early. There is a
line per minute; a summary with the growth from the tenth minute on is the last line.
"""

import argparse
import http.client
import json
import random
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import psutil

TIMEOUT = 900  # seconds; the first search loads the models, which takes minutes on a busy machine
WARM = 10  # minutes after which memory should not grow


class Page:
    """The requests of a page.

    Args:
        address: address that `clipkit browse` printed.
        seed: seed of the random arguments.
    """

    def __init__(self, address: str, seed: int) -> None:
        url = urlsplit(address)
        self.host, self.random, self.answers = url.netloc, random.Random(seed), Counter[int]()
        connection = http.client.HTTPConnection(self.host, timeout=TIMEOUT)
        connection.request("GET", f"/?{url.query}")
        self.cookie = str(connection.getresponse().headers["Set-Cookie"]).split(";")[0]
        connection.close()
        self.about = json.loads(self.ask("GET", "/api/about"))
        self.rows = self.about[0]["images"]
        captions = [text for item in self.listed(view="all", count=200) for text in item["captions"]]
        self.words = captions or ["two dogs in snow"]
        for index in range(len(self.about)):
            self.listed(view="search", words=self.words[:1], index=index)

    def ask(self, method: str, path: str, body: Any = None, host: str | None = None) -> bytes:
        connection = http.client.HTTPConnection(self.host, timeout=TIMEOUT)
        content = json.dumps(body) if isinstance(body, dict) else body
        connection.request(method, path, content, {"Cookie": self.cookie, "Host": host or self.host})
        answer = connection.getresponse()
        self.answers[answer.status] += 1
        read = answer.read()
        connection.close()
        return read

    def listed(self, start: int = 0, count: int = 60, **query: Any) -> list[dict[str, Any]]:
        answer = json.loads(self.ask("POST", "/api/list", {"query": query, "start": start, "count": count}))
        return list(answer.get("items", []))

    def one_action(self) -> None:
        pick, row = self.random, self.random.randrange(self.rows)
        words = pick.choice(self.words).split()
        text = " ".join(pick.sample(words, pick.randint(1, len(words))))
        match pick.randrange(14):
            case 0:
                self.listed(view="search", words=[text], minus=pick.choice([[], ["a person"]]))
            case 1:
                self.listed(view="search", like=[row])
            case 2:
                image = self.ask("GET", f"/0/image/{row}")
                name = json.loads(self.ask("POST", "/api/image", image)).get("image", "")
                self.listed(view="search", images=[name])
                self.ask("POST", "/api/compare", {"query": {"view": "search", "images": [name]}})
            case 3:
                self.listed(view="all", start=row, where=pick.choice(["", f"image contains '{row % 100}'"]))
            case 4:
                self.listed(view="duplicates", at_least=round(pick.uniform(0.5, 1), 3), start=pick.randrange(200))
            case 5:
                self.listed(view=pick.choice(["outliers", "captions"]), start=row)
            case 6:
                columns = self.about[0]["labels"] or ["none"]
                self.listed(view="labels", column=pick.choice(columns))
            case 7:
                self.listed(view="rows", rows=pick.sample(range(self.rows), min(self.rows, 500)))
            case 8:
                self.ask("POST", "/api/map", {"where": pick.choice(["", f"image contains '{row % 100}'"])})
            case 9 if len(self.about) == 2:
                query = pick.choice([{"words": [text]}, {"like": [row]}])
                self.ask("POST", "/api/compare", {"query": {"view": "search", **query}})
            case 10 if len(self.about) == 2:
                self.ask("POST", "/api/differences", {"start": pick.randrange(500)})
            case 11:
                entries = [{"row": pick.randrange(self.rows), "reason": "test"} for _ in range(50)]
                self.ask("POST", "/api/drop", {"entries": entries})
            case 12:
                for path in ("/", "/page.js", "/../etc/passwd", f"/0/thumbnail/{self.rows}"):
                    self.ask("GET", path)
                self.ask("GET", "/", host="evil.example")
                self.ask("POST", "/api/list", b"{" * pick.randrange(10_000))
            case _:
                name, port = self.host.split(":")
                with socket.create_connection((name, int(port)), timeout=10) as connection:
                    connection.sendall(b"GET /0/thumb"[: pick.randrange(12)])
        for _ in range(6):
            self.ask("GET", f"/0/thumbnail/{pick.randrange(self.rows)}")


def main() -> None:
    """Start the server, use it, and print a line per minute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", nargs="+")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between actions")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "clipkit", "browse", *arguments.index, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = re.search(r"http://127\.0\.0\.1\S+", server.stdout.readline())
        assert address is not None, "clipkit browse has printed no address"
        page, process, began = Page(address[0], arguments.seed), psutil.Process(server.pid), time.monotonic()
        lines: list[dict[str, Any]] = []
        while time.monotonic() - began < 60 * arguments.minutes:
            page.one_action()
            time.sleep(arguments.pause)
            if time.monotonic() - began >= 60 * len(lines):
                used = process.memory_full_info()
                counts = {"files": process.num_fds(), "threads": process.num_threads()}
                lines.append(
                    {"minute": len(lines), "requests": page.answers.total(), **counts}
                    | {"rss_mb": round(used.rss / 2**20, 1), "private_mb": round(used.uss / 2**20, 1)}
                )
                print(json.dumps(lines[-1]), flush=True)
        warm, last = lines[min(WARM, len(lines) - 1)], lines[-1]
        growth = {key: round(last[key] - warm[key], 1) for key in ("files", "threads", "rss_mb", "private_mb")}
        print(json.dumps({"statuses": dict(page.answers), "from_minute": warm["minute"], "growth": growth}))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
