"""Safe parsing of YAML and JSON from users, with limits on size and depth. Invalid content raises only ValueError.

>>> parse_yaml("optim: {lr: 1.0e-5}")
{'optim': {'lr': 1e-05}}
"""

import json
from pathlib import Path
from typing import Any

import yaml
from yaml.events import AliasEvent

LARGEST_FILE = 1 << 20
"""Maximum size of a YAML file in bytes."""
_DEEPEST = 40
_MOST_NODES = 20_000
"""Maximum number of nodes of a document, with its aliases expanded."""


class _Loader(yaml.SafeLoader):
    """YAML loader that rejects duplicate keys, deep nesting and aliases that repeat too many values."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        is_alias = self.check_event(AliasEvent)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"nested more than {_DEEPEST} deep", problem_mark=mark)
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and id(node) not in self._sizes:
            raise yaml.MarkedYAMLError(problem="an alias inside the value that it names", problem_mark=mark)
        if not is_alias:
            self._check_keys(node)
        self._sizes[id(node)] = size = self._size(node)
        if size > _MOST_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {_MOST_NODES:,} values", problem_mark=mark)
        return node

    def _size(self, node: yaml.Node) -> int:
        if isinstance(node, yaml.MappingNode):
            return 1 + sum(self._sizes[id(part)] for pair in node.value for part in pair)
        if isinstance(node, yaml.SequenceNode):
            return 1 + sum(self._sizes[id(part)] for part in node.value)
        return 1

    def _check_keys(self, node: yaml.Node) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if (key.tag, key.value) in keys:
                    raise yaml.MarkedYAMLError(problem=f"the key {key.value} twice", problem_mark=key.start_mark)
                keys.add((key.tag, key.value))


def parse_yaml(text: str) -> Any:
    """Parse a YAML document.

    Raises:
        ValueError: the document is invalid, too deeply nested, or has duplicate keys or too many values.
    """
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        raise ValueError(_with_place(error)) from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # The library's constructors raise these, e.g. for the date 2020-99-99 or `!!bool x`.
        raise ValueError(f"an unreadable value ({' '.join(str(error).split())})") from None


def read_yaml(file: Path) -> Any:
    """Parse a YAML file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is too large, not text, or invalid.
    """
    with file.open("rb") as opened:
        content = opened.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ValueError(f"larger than {LARGEST_FILE >> 20} MB")
    return parse_yaml(content.decode("utf-8-sig"))


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON document.

    Raises:
        ValueError: the document is invalid or too deeply nested.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _with_place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return " ".join(f"{error.problem or error.context}{place}".split())
