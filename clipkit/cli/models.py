"""Command `clipkit models`: list the available models, or describe one."""

from typing import Annotated, Any

import typer

from clipkit.cli.inputs import check_models


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="M",
            help="Model to describe: a Hub repository (ORG/NAME), a folder, a run, or open_clip:ARCH/TAG. Default: "
            "list all available models.",
        ),
    ] = None,
    search: Annotated[str, typer.Option(metavar="TEXT", help="List only names that contain this text.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the description as JSON.")] = False,
) -> None:
    """List the available models, or describe one.

    The description of a model lists its towers, sizes, preprocessing, loss and memory.
    """
    import json

    if name is not None:
        check_models(name)
    from clipkit.models.describe import describe

    if name is None:
        _print_loadable(search)
    elif as_json:
        print(json.dumps(describe(name), indent=2))
    else:
        print(name)
        for title, value in _lines(describe(name)):
            print(f"{title:<15}  {value}")


def _print_loadable(search: str) -> None:
    from clipkit.models.describe import loadable

    by_library = loadable(search)
    classes, names = by_library["transformers"], by_library["open_clip"]
    if not classes and not names:
        print(f"no model name contains {search!r}; `clipkit models` lists all names")
        return
    if classes:
        print("Hub repositories and folders with one of these transformers classes:")
        print("  " + ", ".join(classes))
    if names:
        print(f"open_clip, {len(names)} names (without a tag: random weights):")
        for name in names:
            print(f"  {name}")
    if not search:
        print(
            "Also supported: folders written by open_clip or clipkit, clipkit runs, and, in a recipe, two "
            "towers (model.image.name"
        )
        print("and model.text.name). Filter this list with --search; describe a model with `clipkit models NAME`.")


def _lines(description: dict[str, Any]) -> list[tuple[str, str]]:
    size = description["image_size"]
    sides = (("image", f"{size} × {size} pixels" if size else "keeps the aspect ratio"), ("text", ""))
    lines = [("layout", str(description["layout"]))]
    for side, inputs in sides:
        if description[f"{side}_tower"] is None:
            lines.append((f"{side} tower", "none"))
            continue
        if side == "text":
            cut = "padding is removed" if description["padding_is_cut"] else "always padded to full length"
            inputs = f"{description['context_length']} tokens, {cut}; vocabulary {description['vocabulary']:,}"
        activation = description[f"{side}_activation"] or "activation unknown"
        tower = f"{description[f'{side}_tower']}, {description[f'{side}_parameters'] / 1e6:.1f} M parameters"
        tower += f" in {description[f'{side}_blocks']} blocks"
        lines.append((f"{side} tower", f"{tower}, {activation}; {inputs}"))
    lines.append(("shared space", f"{description['embed_dim']} dimensions"))
    if description["image_tower"] is not None:
        lines.append(("preprocessing", f"mean {_numbers(description['mean'])}, std {_numbers(description['std'])}"))
    bias = f", bias {description['bias']:.4g}" if description["bias"] is not None else ""
    inference, training = (_gigabytes(description[f"{use}_bytes"]) for use in ("inference", "training"))
    lines += [
        ("loss", str(description["loss"])),
        ("scale", f"{description['scale']:.4g}{bias}"),
        ("license", description["licence"] or "not stated"),
        ("memory, float32", f"inference {inference}, training with AdamW at a micro-batch size of 1 {training}"),
    ]
    return lines


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
