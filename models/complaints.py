"""What is wrong with a plan or a setting, in words that a person can act on; pydantic's own are for programmers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

NAME = "must be lower-case letters, digits and . _ - of at most 99 characters, a letter or digit first"
SAYS = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "literal_error": "must be {expected}",
    "string_pattern_mismatch": NAME,
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "needs at least {min_length}",
    "too_long": "takes at most {max_length}",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "path_type": "must be a path",
    "value_error": "{error}",
}


def explain(error: ValidationError, *, prefix: str = "") -> str:
    """Every complaint in one line: the field, what it must be, and what was given. Under a prefix the latter is left out:
    a setting may be a secret."""
    return "; ".join(_told(one, prefix) for one in error.errors())


def _told(one: Mapping[str, Any], prefix: str) -> str:
    says = SAYS.get(one["type"])
    told = says.format(**one.get("ctx", {})) if says else one["msg"]
    where = f"{prefix}{'.'.join(map(str, one['loc']))}"
    field = f"{where.upper() if prefix else where} " if one["loc"] else ""
    simple = (
        not prefix and isinstance(one.get("input"), str | int | float) and one["type"] not in ("missing", "value_error")
    )
    return f"{field}{told}" + (f" (given: {one['input']!r})" if simple else "")
