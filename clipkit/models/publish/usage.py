"""Usage section of a model card: runnable code for each library that opens the model."""

from pathlib import Path

from clipkit.models.families import family_of_class
from clipkit.models.publish.layout import Layout

HERE = "ORG/NAME"
"""Placeholder for the repository in a card that is not on the Hub yet."""


def usage(layout: Layout) -> str:
    """Return a code block for each library that can load the model."""
    from jinja2 import Template

    family = family_of_class(layout.class_name)
    template = (Path(__file__).parent / "usage.md.jinja").read_text(encoding="utf-8")
    text = Template(template, trim_blocks=True, lstrip_blocks=True).render(
        here=HERE,
        library=layout.library,
        class_name=layout.class_name,
        sides=layout.sides,
        sigmoid=layout.sigmoid,
        length=layout.pad_to or (family.longest if family is not None else None),
        pipeline=family is not None and family.pipeline,
    )
    return text.rstrip()
