"""Who answers label requests: a protocol, and the oracle that answers from a file of known truth.

Label Studio's implementation is in storage.labelstudio. Another tool is another class with these methods.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from models.errors import BadInput
from models.states import RequestState
from models.values import Answer, ProjectBrief, RequestDraft


class Labeler(Protocol):
    """A place where people, or something that stands for them, answer label requests."""

    name: str

    def open_project(self, brief: ProjectBrief) -> str:
        """The id of the project with this title, made when there is none."""
        ...

    def send(self, project: str, drafts: Sequence[RequestDraft]) -> dict[str, str]:
        """Make a request for every draft that the project does not hold yet; return {key: external id} for all of them."""
        ...

    def answers(self, project: str, *, waiting: Mapping[str, str], since: datetime | None) -> Iterator[Answer]:
        """Answers new or changed since then. `waiting` is {key: sample id} of the requests that have no answer yet."""
        ...

    def check(self) -> dict[str, str]:
        """What it is, for `dipnet doctor`. Raises Unavailable when it does not answer or refuses us."""
        ...

    def url(self, project: str) -> str:
        """Where a person opens the project; empty when there is nothing to open."""
        ...


class OracleLabeler:
    """Answers from a table of known truth, at once and without error. For demos, tests and simulations."""

    name = "oracle"

    def __init__(self, truth: Mapping[str, str]) -> None:
        self.truth = truth

    @classmethod
    def from_csv(cls, path: Path) -> OracleLabeler:
        """Read `sample_id,class_name` rows. Raises BadInput when the file is not such a table."""
        if not path.is_file():
            raise BadInput(
                f"oracle truth '{path}' is not a file; point DIPNET_ORACLE_TRUTH at a CSV of sample_id,class_name"
            )
        with path.open(newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle)
            if not {"sample_id", "class_name"} <= set(reader.fieldnames or ()):
                raise BadInput(f"oracle truth '{path}' lacks the columns sample_id,class_name; add a header line")
            return cls({row["sample_id"]: row["class_name"] for row in reader})

    def open_project(self, brief: ProjectBrief) -> str:
        """The title is the id: the oracle keeps no projects."""
        return brief.title

    def send(self, project: str, drafts: Sequence[RequestDraft]) -> dict[str, str]:  # noqa: ARG002
        """Requests are known by their own keys."""
        return {draft.key: draft.key for draft in drafts}

    def answers(self, project: str, *, waiting: Mapping[str, str], since: datetime | None) -> Iterator[Answer]:  # noqa: ARG002
        """An answer for every waiting request; a sample of unknown truth is skipped, as a person would."""
        for key, sample_id in waiting.items():
            class_name = self.truth.get(sample_id, "")
            yield Answer(
                key=key,
                external_id=key,
                state=RequestState.LABELLED if class_name else RequestState.SKIPPED,
                class_name=class_name,
                annotator="oracle",
                answered_at=datetime.now(UTC),
            )

    def check(self) -> dict[str, str]:
        """How much it knows."""
        return {"oracle": f"knows {len(self.truth)} samples"}

    def url(self, project: str) -> str:  # noqa: ARG002
        """Nothing to open."""
        return ""
