"""Sheet of thumbnails: an HTML file that shows the results of queries and needs no network."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jinja2

from clipkit.errors import DataError, printable
from clipkit.images import as_data_uri

if TYPE_CHECKING:
    from clipkit.search.hit import Hit
    from clipkit.search.index import Index

_SIDE = 224  # pixels
_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="clipkit">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{{ title }}</title>
<style>
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }
body { margin: 1.5rem auto; max-width: 1200px; padding: 0 1rem; }
h2 { overflow-wrap: anywhere; margin: 1.5rem 0 .6rem; font-size: 1.1rem; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 1rem; }
ol { list-style: none; padding: 0; }
img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #8882; border-radius: 4px; }
small { display: block; overflow-wrap: anywhere; opacity: .75; }
</style></head><body>
{% for query, hits in results %}<h2>{{ query }}</h2>
{% if not hits %}<p>Nothing matches.</p>{% endif %}<ol>
{% for hit in hits %}<li>
{% if hit.uri %}<img src="{{ hit.uri }}" alt="{{ hit.image }}">{% else %}<p>{{ hit.why }}</p>{% endif %}
{{ hit.numbers }}<small>{{ hit.caption }}</small><small>{{ hit.image }}</small></li>
{% endfor %}</ol>
{% endfor %}</body></html>
"""


def sheet(index: "Index", results: "Mapping[str, Sequence[Hit]]") -> str:
    """Return an HTML page with the results of each query.

    Args:
        index: the index, from which the images are opened.
        results: results by query.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    shown = [(printable(query), [_card(index, hit) for hit in hits]) for query, hits in results.items()]
    title = shown[0][0] if len(shown) == 1 else f"{len(shown)} searches"
    return environment.from_string(_TEMPLATE).render(results=shown, title=title)


def _card(index: "Index", hit: "Hit") -> dict[str, str]:
    uri = why = ""
    try:
        uri = as_data_uri(index.image(hit.row), _SIDE)
    except DataError as error:
        why = str(error)
    relevance = "" if hit.relevance is None else f" · {hit.relevance:.0%} relevant"
    caption = hit.captions[0] if hit.captions else ""
    numbers = f"{hit.score:.3f}{relevance}"
    return {"uri": uri, "why": why, "numbers": numbers, "image": printable(hit.image), "caption": printable(caption)}
