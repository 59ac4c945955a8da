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
from models.values import Answer, Census, Item, ProjectBrief, RequestDraft, Settled, Waiting


class Labeler(Protocol):
    """A place where people, or something that stands for them, answer label requests.

    All that adds may be called again after a kill: it looks first for what is there. Nothing but `tidy` takes away.
    """

    name: str

    @property
    def links_until(self) -> datetime | None:
        """When the links to images that it hands out now will expire; None: they do not."""
        ...

    def open_project(self, brief: ProjectBrief, *, known: str = "") -> str:
        """The id of the project: the known one, or that of this title, made when there is none; brought up to the brief."""
        ...

    def send(self, project: str, drafts: Sequence[RequestDraft]) -> dict[str, str]:
        """Make a request for every draft that the project does not hold yet; return {key: external id} for all of them."""
        ...

    def changes(
        self, project: str, *, waiting: Mapping[str, Waiting], settled: Settled | None
    ) -> Iterator[Sequence[Item]]:
        """Our items that changed after what is settled, some at a time, with all their answers; None: all ever answered.

        Where the labeller does not count what is settled, items that changed within come again: they were written late.
        `waiting` holds the requests, by key, that have too few answers yet.
        """
        ...

    def clock(self) -> datetime | None:
        """What time it is there, not later than it is; None where times say nothing."""
        ...

    def census(self, project: str) -> Census | None:
        """How many items and answers there are now; None where nobody but dipnet can change that."""
        ...

    def present(self, project: str) -> Mapping[str, Sequence[str]]:
        """The external ids of our items there are, by key."""
        ...

    def tidy(self, project: str, keys: Sequence[str]) -> int:
        """Take away unanswered items that are there twice under one of these keys; return how many are left twice.

        A project that is there twice is taken away as well, where nothing is in it.
        """
        ...

    def ask_again(self, project: str, opinions: Mapping[str, int]) -> None:
        """Let so many annotators in all answer each item, by external id."""
        ...

    def renew_links(self, project: str, drafts: Mapping[str, RequestDraft]) -> None:
        """Give items, by external id, links to their images that are good from now on."""
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
    links_until = None

    def __init__(self, truth: Mapping[str, str], known_since: datetime) -> None:
        self.truth, self._known_since = truth, known_since  # its answers are as old as its truth: twice is once

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
            truth = {row["sample_id"]: row["class_name"] for row in reader}
        return cls(truth, datetime.fromtimestamp(path.stat().st_mtime, UTC))

    def open_project(self, brief: ProjectBrief, *, known: str = "") -> str:
        """The title is the id: the oracle keeps no projects."""
        return known or brief.title

    def send(self, project: str, drafts: Sequence[RequestDraft]) -> dict[str, str]:  # noqa: ARG002
        """Requests are known by their own keys."""
        return {draft.key: draft.key for draft in drafts}

    def changes(
        self,
        project: str,  # noqa: ARG002
        *,
        waiting: Mapping[str, Waiting],
        settled: Settled | None,  # noqa: ARG002
    ) -> Iterator[Sequence[Item]]:
        """As many answers as every waiting request needs, all alike; what it does not know, or cannot say, it skips."""
        for key, request in waiting.items():
            class_name = self.truth.get(request.sample_id, "")
            class_name = class_name if class_name in request.offered else ""
            answers = [
                Answer(
                    external_id=f"{key}:{number}" if number else key,
                    state=RequestState.LABELLED if class_name else RequestState.SKIPPED,
                    class_names=[class_name] if class_name else [],
                    annotator=f"oracle-{number + 1}" if number else "oracle",
                    answered_at=self._known_since,
                )
                for number in range(request.opinions)
            ]
            yield [Item(key=key, external_id=key, changed_at=self._known_since, answers=answers)]

    def clock(self) -> None:
        """Its answers are as old as its truth."""
        return

    def census(self, project: str) -> None:  # noqa: ARG002
        """Nobody else writes there."""
        return

    def present(self, project: str) -> Mapping[str, Sequence[str]]:  # noqa: ARG002
        """Nothing is kept."""
        return {}

    def tidy(self, project: str, keys: Sequence[str]) -> int:  # noqa: ARG002
        """Nothing is there twice."""
        return 0

    def ask_again(self, project: str, opinions: Mapping[str, int]) -> None:
        """It answers whatever waits."""

    def renew_links(self, project: str, drafts: Mapping[str, RequestDraft]) -> None:
        """It looks at no image."""

    def check(self) -> dict[str, str]:
        """How much it knows."""
        return {"oracle": f"knows {len(self.truth)} samples"}

    def url(self, project: str) -> str:  # noqa: ARG002
        """Nothing to open."""
        return ""
