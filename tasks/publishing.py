"""What a person sees of a flow run in the Prefect UI. It loads little: flows that run every few minutes import it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from prefect.artifacts import create_table_artifact
from prefect.context import FlowRunContext

from models.values import Report


def publish(key: str, outcomes: Sequence[Report]) -> None:
    """A table in the Prefect UI; nothing outside a flow run."""
    if FlowRunContext.get() and outcomes:
        rows = [json.loads(outcome.model_dump_json()) for outcome in outcomes]
        cells = [{name: cell_of(value) for name, value in row.items()} for row in rows]
        create_table_artifact(key=key_of(key), table=cells)


def key_of(name: str) -> str:
    """A name as the key of an artifact: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9-]+", "-", name.lower())


def cell_of(value: object) -> object:
    """A value as a cell of a table artifact."""
    return value if isinstance(value, str | int | float | None) else json.dumps(value)
