"""Usage section of a model card, with runnable code for each library that can load the model."""

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from clipkit.models.families import family_of_class
from clipkit.models.image_processors import pillow_option
from clipkit.models.publish.layout import Layout

if TYPE_CHECKING:
    from jinja2 import Template

HERE = "ORG/NAME"
"""Placeholder for the repository in a card that is not on the Hub yet."""


def usage(layout: Layout, here: str = HERE) -> str:
    """Return a code block for each library that can load the model.

    Args:
        layout: properties of the model.
        here: Hub repository or folder from which the code loads the model. For a folder, the code creates its own input
            image.
    """
    family = family_of_class(layout.class_name)
    hub = here == HERE
    image = 'Image.new("RGB", (300, 200), "red")'
    text = _template().render(
        here=here,
        hub=hub,
        quoted=lambda before="", after="": json.dumps(f"{before}{here}{after}", ensure_ascii=False),
        images='["photo.jpg"]' if hub else f'[{image}]  # or files: ["photo.jpg"]',
        photo='"photo.jpg"' if hub else image,
        library=layout.library,
        class_name=layout.class_name,
        sides=layout.sides,
        sigmoid=layout.sigmoid,
        pad_to=layout.pad_to,
        context_length=layout.context_length,
        repairs=layout.repairs,
        clean=layout.clean,
        by_clipkit=layout.prepared_by_clipkit,
        source=json.dumps(layout.source, ensure_ascii=False),
        pipeline=family is not None and family.pipeline,
        pillow=", ".join(f"{name}={value!r}".replace("'", '"') for name, value in pillow_option().items()),
    )
    return re.sub(r"\n{4,}", "\n\n\n", text).strip()


@cache
def _template() -> "Template":
    """Return the compiled Jinja template of the usage section."""
    from jinja2 import Template

    text = (Path(__file__).parent / "usage.md.jinja").read_text(encoding="utf-8")
    return Template(text, trim_blocks=True, lstrip_blocks=True)


def first_code(text: str) -> str:
    """Return the first code block of a usage section."""
    return text.partition("```python\n")[2].partition("```")[0]
