"""Command `clipkit browse`: search and curate an index in a browser."""

from pathlib import Path
from typing import Annotated

import typer

from clipkit.errors import UserError

PORT = 8470


def browse(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of an index that clipkit embed wrote.")],
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="OTHER",
            help="Folder of a second index: the same images, encoded by another model. The page then also shows "
            "the results of both indexes side by side, and lists the queries whose results differ most.",
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Port of the page at 127.0.0.1, an address that only this machine can open. 0: any free port.",
            min=0,
            max=65535,
        ),
    ] = PORT,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="M",
            help="Folder or Hub repository from which to load the model of INDEX. An ONNX export loads "
            "faster. Default: the value of --model in clipkit embed.",
        ),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            metavar="F.txt",
            help="With OTHER: text file with one query per line. The page compares the results of both indexes for "
            "these queries. Default: up to 2,000 captions of the indexes.",
        ),
    ] = None,
) -> None:
    """Search and curate an index in a browser.

    Starts a web page that only this machine can open. The page also lists near duplicates, outliers and doubtful
    captions. Select images and captions there to save them as a list; clipkit data check --fix --drop then writes a
    copy of the data without them. Stop with Ctrl+C.
    """
    from clipkit.cli.inputs import check_file, check_models
    from clipkit.cli.search import query_lines
    from clipkit.search.folder import check_is_index

    for folder in (index, other):
        if folder is not None:
            check_is_index(folder)
    if queries is not None:
        if other is None:
            raise UserError(f"--queries {queries}: needs two indexes, but only one was given; give a second index")
        check_file(queries, "give a text file with one query per line")
    if model is not None:
        check_models(model)
    from clipkit.search import Index
    from clipkit.search.browse.app import App
    from clipkit.search.browse.http import Server

    opened = [Index(index, model=model)] + ([Index(other)] if other is not None else [])
    app = App(opened, query_lines(queries) if queries is not None else None)
    names = " and ".join(f"{one.path}: {len(one):,} images" for one in opened)
    if app.comparison is not None:
        names += f" ({app.comparison.pair.common:,} in both)"
    with Server(port, app.answer) as server:
        print(f"{names} at {server.address}\nStop with Ctrl+C.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped")
    app.close()
