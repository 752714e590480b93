"""`clipkit models`: what can be loaded, and what one model is."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table


def print_loadable(search: str) -> None:
    """Names by where they come from."""
    from clipkit.models.describe import loadable

    found = loadable(search)
    classes, names = found["transformers"], found["open_clip"]
    if not classes and not names:
        print(f"nothing that can be loaded has {search!r} in its name; `clipkit models` lists everything")
        return
    if classes:
        print("Hub repositories and folders of transformers' classes:")
        print("  " + ", ".join(classes))
    if names:
        print(f"open_clip, {len(names)} names (without a tag: random weights):")
        for name in names:
            print(f"  {name}")
    if not search:
        print("Also folders that open_clip or clipkit wrote, clipkit runs, and two towers by a recipe: image.name and")
        print("text.name. Narrow this list with --search, and look at one with `clipkit models NAME`.")


def print_description(name: str, as_json: bool) -> None:
    """One model, a line a property."""
    from clipkit.models.describe import describe

    found = describe(name)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table(title=name, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column()
    for title, value in _lines(found):
        table.add_row(title, value)
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    size = found["image_size"]
    sides = (("image", f"{size} × {size} pixels" if size else "images in their own shape"), ("text", ""))
    lines = [("layout", str(found["layout"]))]
    for side, own in sides:
        if found[f"{side}_tower"] is None:
            lines.append((f"{side} tower", "none"))
            continue
        if side == "text":
            cut = "padding is cut" if found["padding_is_cut"] else "always at full length"
            own = f"{found['context_length']} tokens, {cut}; vocabulary {found['vocabulary']:,}"
        activation = found[f"{side}_activation"] or "activation not stated"
        tower = f"{found[f'{side}_tower']}, {found[f'{side}_parameters'] / 1e6:.1f} M parameters"
        tower += f" in {found[f'{side}_blocks']} blocks"
        lines.append((f"{side} tower", f"{tower}, {activation}; {own}"))
    lines.append(("shared space", f"{found['embed_dim']} dimensions"))
    if found["image_tower"] is not None:
        lines.append(("preprocessing", f"mean {_numbers(found['mean'])}, std {_numbers(found['std'])}"))
    lines += [
        ("loss family", str(found["loss"])),
        ("scale", f"{found['scale']:.4g}" + (f", bias {found['bias']:.4g}" if found["bias"] is not None else "")),
        ("licence", found["licence"] or "not stated"),
        ("memory, float32", f"inference {_gigabytes(found['inference_bytes'])}, training at micro-batch 1 with AdamW "
                            f"{_gigabytes(found['training_bytes'])}"),
    ]  # fmt: skip
    return lines


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
