"""Responses to the HTTP requests of the web page."""

import json
import re
import secrets
import shlex
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from clipkit.errors import DataError, UserError
from clipkit.images import InMemory, open_image
from clipkit.search.browse.asked import Asked, Compared, DropList, Mapped, Part, parsed
from clipkit.search.browse.compared import Comparison
from clipkit.search.browse.http import Request, Response
from clipkit.search.browse.thumbnails import Thumbnails
from clipkit.search.browse.views import Views
from clipkit.search.index import Index
from clipkit.search.labels import label_columns
from clipkit.search.map import MOST, colors_of
from clipkit.search.source import CAPTIONS, IMAGE, RESERVED

_IMAGE = re.compile(r"/([01])/(thumbnail|image)/([0-9]{1,9})")
_IMAGES_KEPT = 4
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class App:
    """Web page of one index, or of two indexes side by side.

    Args:
        indexes: one or two indexes.
        queries: texts whose results in two indexes are compared. None: captions that both indexes have.

    Raises:
        DataError: the two indexes have no image in common.
    """

    def __init__(self, indexes: Sequence[Index], queries: Sequence[str] | None = None) -> None:
        self.views = [Views(index) for index in indexes]
        self.comparison = Comparison(self.views, queries) if len(indexes) == 2 else None
        self.thumbnails = [Thumbnails(index) for index in indexes]
        self._images: OrderedDict[str, InMemory] = OrderedDict()
        files = (Path(__file__).parent / "page").iterdir()
        self._page = {f"/{file.name}": (file.read_bytes(), _KINDS[file.suffix]) for file in files}
        self._page["/"] = self._page["/index.html"]

    def answer(self, request: Request) -> Response:
        """Return the response to a request.

        Raises:
            UserError: the request is not valid.
        """
        match request.method, request.path:
            case "GET", "/api/about":
                return Response.of([self._about(views.index) for views in self.views])
            case "GET", path if path in self._page:
                return Response(*self._page[path])
            case "GET", path if found := _IMAGE.fullmatch(path):
                return self._image(int(found[1]), found[2], int(found[3]))
            case "POST", "/api/list":
                return self._list(parsed(Asked, request.body))
            case "POST", "/api/map":
                return self._map(parsed(Mapped, request.body))
            case "POST", "/api/compare":
                compared = parsed(Compared, request.body)
                return Response.of(self._comparison().sides(compared.query, self._images, compared.count))
            case "POST", "/api/differences":
                return Response.of(self._comparison().differences(parsed(Part, request.body)))
            case "POST", "/api/image":
                return self._keep(request.body)
            case "POST", "/api/drop":
                return self._drop(parsed(DropList, request.body))
        return Response.of({"error": "the address of this request is unknown; reload the page"}, 404)

    def close(self) -> None:
        """Close the files that store thumbnails."""
        for thumbnails in self.thumbnails:
            thumbnails.close()

    def _about(self, index: Index) -> dict[str, object]:
        return {
            "name": str(index.path),
            "version": index.manifest["files"]["rows"]["sha256"][:16],
            "model": index.manifest["model"]["name"],
            "source": shlex.quote(index.manifest["source"] or "D"),
            "images": len(index),
            "captions": index.manifest["captions"],
            "columns": {field.name: str(field.type) for field in index.rows.schema if field.name not in RESERVED},
            "labels": label_columns(index.rows),
            "calibrated": bool(index.calibrations),
            "words": "text" in index.manifest["probes"],
        }

    def _views_of(self, number: int) -> Views:
        if number >= len(self.views):
            raise UserError(f"index {number} is not open; reload the page")
        return self.views[number]

    def _list(self, asked: Asked) -> Response:
        made = self._views_of(asked.query.index).listing(asked.query, self._images)
        if isinstance(made, float):
            return Response.of({"working": made})
        items = made.items(slice(asked.start, asked.start + asked.count))
        return Response.of({"total": made.total, "start": asked.start, "items": items})

    def _comparison(self) -> Comparison:
        if self.comparison is None:
            raise UserError("only one index is open; start clipkit browse with two indexes to compare them")
        return self.comparison

    def _map(self, asked: Mapped) -> Response:
        views = self._views_of(asked.index)
        found = views.map(asked.where)
        if found is None:
            return Response.of({"working": 0.0, "images": min(len(views.index), MOST)})
        made, kept = found
        values = {"total": len(views.index), "rows": made.rows.tolist(), "kept": kept.astype(int).tolist()}
        values |= {name: made.positions[:, n].round(4).tolist() for n, name in enumerate("xy")}
        if asked.color:
            values["names"], values["colors"] = colors_of(views.index, asked.color, made.rows)
        return Response.of(values)

    def _image(self, number: int, kind: str, row: int) -> Response:
        self._views_of(number)
        thumbnails = self.thumbnails[number]
        try:
            content = thumbnails.small(row) if kind == "thumbnail" else thumbnails.large(row)
        except DataError as error:
            return Response.of({"error": str(error)}, 404)
        return Response(content, "image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    def _keep(self, body: bytes) -> Response:
        image = InMemory("the image", body)
        open_image(image)
        name = secrets.token_hex(8)
        self._images[name] = image
        while len(self._images) > _IMAGES_KEPT:
            self._images.popitem(last=False)
        return Response.of({"image": name})

    def _drop(self, given: DropList) -> Response:
        index = self._views_of(given.index).index
        lines = []
        for entry in given.entries:
            values = index.rows.slice(index.row_of(entry.row), 1).to_pylist()[0]
            line = {"image": values[IMAGE]}
            if entry.caption is not None:
                captions = values[CAPTIONS] or []
                if entry.caption >= len(captions):
                    raise UserError(f"row {entry.row} has no caption {entry.caption}; reload the page")
                line["caption"] = captions[entry.caption]
            lines.append(json.dumps(line | {"reason": entry.reason}, ensure_ascii=False) + "\n")
        return Response("".join(lines).encode("utf-8", "backslashreplace"), "application/jsonl")
