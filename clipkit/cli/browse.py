"""Command `clipkit browse`: search and curate an index in a browser."""

from pathlib import Path
from typing import Annotated

import typer

from clipkit.errors import UserError

PORT = 8470


def browse(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder that clipkit embed wrote.")],
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="OTHER",
            help="A second index of the same images by another model: the page also shows the searches of both side by "
            "side, and the queries where they differ most.",
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            metavar="N", help="Port on 127.0.0.1, i.e. for this machine only. 0: any free port.", min=0, max=65535
        ),
    ] = PORT,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="M",
            help="Another location of the model that made INDEX, e.g. its ONNX export, which loads faster. "
            "Default: the location given to clipkit embed.",
        ),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            metavar="F.txt",
            help="With OTHER: compare the searches for each line of this text file. Default: for the captions of the "
            "indexes, up to 2,000 of them.",
        ),
    ] = None,
) -> None:
    """Search and curate an index in a browser.

    Starts a web page for this machine only, which also lists near duplicates, outliers and doubtful captions. Images
    and captions that you select there are saved as a list; clipkit data check --fix --drop removes them from a copy of
    the data. Stop with Ctrl+C.
    """
    from clipkit.cli.inputs import check_file, check_models
    from clipkit.cli.search import query_lines
    from clipkit.search.folder import check_is_index

    for folder in (index, other):
        if folder is not None:
            check_is_index(folder)
    if queries is not None:
        if other is None:
            raise UserError(f"--queries {queries}: one index has nothing to compare with; give a second index")
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
