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
        cells = [{name: _cell(value) for name, value in row.items()} for row in rows]
        create_table_artifact(key=re.sub(r"[^a-z0-9-]+", "-", key.lower()), table=cells)


def _cell(value: object) -> object:
    return value if isinstance(value, str | int | float | None) else json.dumps(value)
