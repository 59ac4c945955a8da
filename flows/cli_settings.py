"""`--set NAME=VALUE`: every field of a few plans as an option of a command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, get_origin

from models.errors import BadInput
from models.plans import Plan


def fields_of(given: Sequence[str], owners: Sequence[type[Plan]], *, listing: str) -> list[dict[str, Any]]:
    """NAME=VALUE pairs as fields of the plans, each of the first that has it. Raises BadInput for any other name."""
    found: list[dict[str, Any]] = [{} for _ in owners]
    for pair in given:
        name, equals, value = pair.partition("=")
        known = [place for place, owner in enumerate(owners) if equals and name in owner.model_fields]
        if not known:
            raise BadInput(f"--set '{pair}' is no NAME=VALUE of a setting; see: {listing}")
        place = known[0]
        several = get_origin(owners[place].model_fields[name].annotation) is list
        found[place][name] = _words(name, value) if several else value
    return found


def setting_rows(owners: Sequence[tuple[str, type[Plan]]]) -> list[dict[str, str]]:
    """A row a field: what it belongs to, its name, default and description."""
    return [
        {
            "of": of,
            "name": name,
            "default": str(field.get_default(call_default_factory=True)),
            "what": str(field.description),
        }
        for of, owner in owners
        for name, field in owner.model_fields.items()
    ]


def _words(name: str, value: str) -> list[str]:
    """A list is written as words, quoted as in a shell."""
    try:
        return shlex.split(value)
    except ValueError as problem:
        raise BadInput(f"--set {name}: {problem}; quote it as in a shell") from None
