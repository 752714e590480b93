"""One-line error messages for invalid recipes."""

import difflib
import re
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


def _known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for kind in _kinds(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += _known_keys(kind, f"{prefix}{name}.")
    return keys


def _kinds(annotation: Any) -> list[Any]:
    """Return a type annotation, followed by the members of its unions and the items of its lists."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType, Annotated, list) else ()
    return [annotation, *(kind for part in parts for kind in _kinds(part))]


# Key names in other tools -> keys of a recipe.
_ELSEWHERE = {
    "learning_rate": "optim.lr",
    "wd": "optim.weight_decay",
    "grad_clip_norm": "optim.clip",
    "max_grad_norm": "optim.clip",
    "num_train_epochs": "train.epochs",
    "mixed_precision": "train.precision",
    "num_workers": "data.workers",
    "output_dir": "output",
}


# Advice by the type of a pydantic error. {name} is replaced by the entry `name` of the error's context.
_ADVICE = {
    "greater_than": "give a number greater than {gt:g}",
    "greater_than_equal": "give a number of at least {ge:g}",
    "less_than": "give a number less than {lt:g}",
    "less_than_equal": "give a number of at most {le:g}",
    "finite_number": "give a finite number",
    "too_short": "give {min_length} or more values",
    "too_long": "give {max_length} or fewer values",
    "float_type": "give a number",
    "float_parsing": "give a number",
    "int_type": "give an integer",
    "int_parsing": "give an integer",
    "int_parsing_size": "give an integer with fewer digits",
    "int_from_float": "give an integer",
    "bool_type": "give true or false",
    "bool_parsing": "give true or false",
    "string_type": "give a text",
    "list_type": "give a list",
    "tuple_type": "give a list",
    "dict_type": "give keys with values",
    "model_type": "give keys with values",
    "model_attributes_type": "give keys with values",
    "literal_error": "use {expected}",
    "extra_forbidden": "remove this key",
    "union_tag_invalid": "set {discriminator} to one of {expected_tags}",
    "union_tag_not_found": "add the key {discriminator}",
}


def key_of(problem: ErrorDetails) -> str:
    """Return the recipe key that a pydantic error is about, e.g. data.augment.0.degrees."""
    # `one` and `several` are tags of unions, not parts of the key.
    return ".".join(shortened(str(part)) for part in problem["loc"] if part not in ("one", "several"))


def value_and_advice(problem: ErrorDetails) -> str:
    """Return the invalid value of a pydantic error, with advice, e.g. "is -5; give a number greater than 0"."""
    advice = _ADVICE.get(problem["type"])
    context = {
        name: value.replace("'", "") if isinstance(value, str) else value
        for name, value in problem.get("ctx", {}).items()
    }
    text = problem["msg"][0].lower() + problem["msg"][1:] if advice is None else advice.format(**context)
    return f"is {_shown(problem['input'])}; {text}"


def first_problem(recipe: type[BaseModel], error: ValidationError) -> str:
    """Return a one-line message about the first error in a recipe, with the key and advice."""
    # Unknown keys are reported first: often a required key is only missing because it is misspelled.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    key = key_of(problem)
    match problem["type"]:
        case "extra_forbidden":
            known = _known_keys(recipe)
            section = key.rpartition(".")[0]
            siblings = [name for name in known if name.rpartition(".")[0] == section]
            if item := re.match(r"(.+?)\.\d+\b", section):  # an item of a list
                known = [name for name in known if name.startswith(f"{item[1]}.")]
                siblings = known = [f"{section}.{name.rpartition('.')[2]}" for name in known]
            last_part = {name.rpartition(".")[2]: name for name in reversed(known)}
            near = [_ELSEWHERE[last] for last in [key.rpartition(".")[2]] if last in _ELSEWHERE]
            near = (
                near
                or [name for name in siblings if name.startswith(key)]
                or difflib.get_close_matches(key, siblings, 1, 0.5)
                or difflib.get_close_matches(key, known, 1, 0.6)
            )
            near = near or [last_part[n] for n in difflib.get_close_matches(key.rpartition(".")[2], last_part, 1, 0.6)]
            advice = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(siblings or known)}"
            return f"{key} is not a valid key; {advice}"
        case "missing" if isinstance(problem["loc"][-1], int):
            listed, _, index = key.rpartition(".")
            return f"{listed} has only {index} value{'s' * (index != '1')}; add another value"
        case "missing":
            return f"{key} is missing; add this key, which is always needed"
        case "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            # If the message starts with a key of the section, both are joined to section.key.
            joint = "." if f"{key}.{re.split('[ :]', message)[0]}" in _known_keys(recipe) else " "
            return shortened(f"{key}{joint}{message}".strip())
        case "value_of_key":
            return shortened(f"{key}.{problem['msg']}".lstrip("."))
        case _:
            return f"{key} {value_and_advice(problem)}"


def _shown(value: object) -> str:
    """Return a value as short text for an error message."""
    try:
        return shortened(repr(value))
    except ValueError:  # `repr` fails for an integer with thousands of digits
        return "a number with thousands of digits"


def shortened(text: str) -> str:
    """Replace the middle of a text of more than 600 characters by an ellipsis."""
    return text if len(text) <= 600 else f"{text[:300]} … {text[-200:]}"
