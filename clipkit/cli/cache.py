"""Command `clipkit cache`: list and remove data that training and evaluation store for reuse."""

from typing import Annotated

import typer

from clipkit.errors import UserError

app = typer.Typer(
    help="List and remove data stored by training and evaluation.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_() -> None:
    """List the stored data.

    Training stores the outputs of frozen layers, and evaluation stores features, to avoid recomputation.
    """
    import time

    from clipkit.cli.tables import print_table
    from clipkit.embedding.cached import evaluated_features, is_used, readable_size, stored_inputs
    from clipkit.files import cache_folder
    from clipkit.findings import duration

    rows = []
    for cached in sorted([*stored_inputs(), *evaluated_features()], key=lambda cached: cached.used, reverse=True):
        about = cached.about
        used = "now" if is_used(cached.folder) else f"{duration(max(1.0, time.time() - cached.used))} ago"
        described = [str(about.get(key, "")) for key in ("items", "data", "dtype")]
        name = cached.folder.name.removeprefix(".")[:8]
        rows.append([name, about.get("what", "unfinished"), *described, readable_size(cached.size), used])
    if not rows:
        print(f"{cache_folder()}: nothing is stored")
        return
    print_table(["name", "content", "items", "data", "type", "size", "last used"], rows, str(cache_folder()))


@app.command()
def size() -> None:
    """Print the size of all stored data."""
    from clipkit.embedding.cached import evaluated_features, readable_size, stored_inputs
    from clipkit.files import cache_folder

    inputs, features = (sum(one.size for one in cached) for cached in (stored_inputs(), evaluated_features()))
    print(f"{cache_folder()}: {readable_size(inputs + features)}")
    print(f"stored inputs of towers: {readable_size(inputs)}")
    print(f"features of evaluations: {readable_size(features)}")


@app.command()
def prune(
    older_than: Annotated[
        int | None,
        typer.Option(metavar="DAYS", min=0, help="Remove data that has not been used for this number of days."),
    ] = None,
    to_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Remove the least recently used data until at most this size remains, e.g. 5GB."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all stored data.")] = False,
) -> None:
    """Remove stored data.

    Give at least one option. Data that a running process uses is kept. Removed data is computed again when needed.
    """
    import time

    if older_than is None and to_size is None and not everything:
        raise UserError("clipkit cache prune was given no option; give --older-than DAYS, --to-size SIZE or --all")
    limit = None if to_size is None else _bytes_of(to_size)
    from clipkit.embedding.cached import evaluated_features, readable_size, remove, stored_inputs

    left = sorted([*stored_inputs(), *evaluated_features()], key=lambda cached: cached.used)
    total, freed, in_use = sum(cached.size for cached in left), 0, 0
    for cached in left:
        old = older_than is not None and time.time() - cached.used >= older_than * 86_400
        large = limit is not None and total - freed > limit
        if not (everything or old or large):
            continue
        if remove(cached.folder):
            freed += cached.size
        else:
            in_use += cached.size
    kept = f"; {readable_size(in_use)} are in use by running processes and were kept" if in_use else ""
    print(f"removed {readable_size(freed)}, {readable_size(total - freed)} remain{kept}")


def _bytes_of(size: str) -> int:
    from clipkit.recipe.data import bytes_of

    try:
        return bytes_of(size)
    except ValueError:
        raise UserError(f"--to-size {size} is not a size; give a number with the unit MB, GB or TB, e.g. 5GB") from None
