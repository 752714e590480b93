"""Command `clipkit browse`: search and curate an index in a browser."""

from pathlib import Path
from typing import Annotated

import typer

PORT = 8470


def browse(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder that clipkit embed wrote.")],
    port: Annotated[
        int, typer.Option(metavar="N", help="Port on 127.0.0.1; 0: any free one.", min=0, max=65535)
    ] = PORT,
    model: Annotated[
        str | None,
        typer.Option(metavar="M", help="Where to load the model from, e.g. its ONNX export. Default: as for embed."),
    ] = None,
) -> None:
    """Search an index in a browser, and look for near duplicates, outliers and doubtful captions.

    The page is served to this machine only. Images and captions that are selected there become a list for clipkit data
    check --fix. Stop with Ctrl+C.
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
