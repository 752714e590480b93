"""Command `clipkit browse`: search and curate an index in a browser."""

from pathlib import Path
from typing import Annotated

import typer

PORT = 8470


def browse(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder that clipkit embed wrote.")],
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
            help="Another location of the model that made the index, e.g. its ONNX export, which loads faster. "
            "Default: the location given to clipkit embed.",
        ),
    ] = None,
) -> None:
    """Search and curate an index in a browser.

    Starts a web page for this machine only, which also lists near duplicates, outliers and doubtful captions. Images
    and captions that you select there are saved as a list; clipkit data check --fix --drop removes them from a copy of
    the data. Stop with Ctrl+C.
    """
    from clipkit.cli.inputs import check_models
    from clipkit.search.folder import check_is_index

    check_is_index(index)
    if model is not None:
        check_models(model)
    from clipkit.search import Index
    from clipkit.search.browse.app import App
    from clipkit.search.browse.http import Server

    opened = Index(index, model=model)
    app = App([opened])
    with Server(port, app.answer) as server:
        print(f"{index}: {len(opened):,} images at {server.address}\nStop with Ctrl+C.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped")
    app.close()
