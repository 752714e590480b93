"""Command `clipkit embed`: encode a dataset and write an index for search."""

from pathlib import Path
from typing import Annotated

import typer

from clipkit.cli.inputs import check_models
from clipkit.cli.launch import is_main_process, joined_processes, run_again_on_processes
from clipkit.cli.measuring import Dtype, ProcessCount

_LISTED = 3


def embed(
    data: Annotated[
        str,
        typer.Argument(
            metavar="D",
            help="Images, with or without captions: a table, a folder, shards (WebDataset), or hf:NAME (Hugging "
            "Face Hub).",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(metavar="M", help="Model: a Hub repository (ORG/NAME), a folder, a run, or open_clip:ARCH/TAG."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="INDEX", help="Folder of the index: a new folder, or an existing index to update.")
    ],
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Number of images per forward pass. Default: chosen for the device.", min=1),
    ] = None,
    dtype: Annotated[
        Dtype,
        typer.Option(
            help="Precision of the forward pass. auto: bf16 autocast with fp32 weights on a CUDA GPU, otherwise fp32. "
            "The index stores features in half precision."
        ),
    ] = "fp32",
    processes: ProcessCount = 1,
    qdrant: Annotated[
        bool,
        typer.Option(
            "--qdrant",
            help="Also copy the features to a Qdrant server. Set the environment variables QDRANT_URL (address of the "
            "server) and QDRANT_API_KEY (key of the server). clipkit search uses the server if QDRANT_URL is set.",
        ),
    ] = False,
) -> None:
    """Encode images and captions, and write a search index.

    If the index exists, only new images are encoded, and images that are no longer in the data are removed from the
    index. After an interruption, run the same command again to resume.
    """
    from clipkit.data.sources.read import check_exists
    from clipkit.search.folder import check_index_folder

    check_models(model)
    check_exists(data)
    check_index_folder(out)
    if qdrant:
        from clipkit.search.qdrant import check_qdrant

        check_qdrant()
    if processes > 1:
        run_again_on_processes(processes)
    from clipkit.cli.process import keep_freed_memory
    from clipkit.cli.terminal import print_error
    from clipkit.findings import counted
    from clipkit.search import embed as run
    from clipkit.search.engine import LEAST_ROWS

    keep_freed_memory()
    try:
        made = run(
            data,
            model,
            out,
            batch_size=batch_size,
            processes=joined_processes(),
            progress=True,
            qdrant=qdrant,
            dtype=dtype,
        )
    except KeyboardInterrupt:
        if is_main_process():
            print_error(f"{out}: interrupted; run the same command again to resume")
        raise typer.Exit(130) from None
    if not is_main_process():
        return
    for finding in made.findings:
        print_error(finding.line())
    captions = f" with {counted(made.captions, 'caption')}" if made.captions else ""
    removed = f", {made.removed:,} removed" if made.removed else ""
    print(f"{out}: {counted(made.images, 'image')}{captions}; {made.encoded_images:,} newly encoded{removed}")
    print(f"largest rounding error of a feature value: {made.manifest['features']['max_error']:.1e} (half precision)")
    engine = made.manifest["engine"]
    if engine is not None:
        print(f"search engine: {engine['name']}, recall@10 {engine['recall@10']:.3f} on {engine['queries']} queries")
    elif made.images >= LEAST_ROWS:
        print(
            "search engine: none (a search compares the query with all images); for faster searches: pip install "
            "'clipkit-torch[search]'"
        )
    for entry in made.skipped[:_LISTED]:
        print_error(f"skipped: {entry['reason']}")
    if made.skipped:
        listed = out / "manifest.json"
        print(f"skipped {counted(len(made.skipped), 'unreadable image')}; {listed} lists them with reasons")
