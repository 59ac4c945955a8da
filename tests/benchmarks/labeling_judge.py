"""What became of a batch, held against what Label Studio truly holds: lost, doubled, wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlmodel import col, select

from models.campaign import Campaign, CampaignRun, Candidate
from models.labeling import Label, LabelBatch, LabelRequest
from models.states import CandidateState, RequestState, RunState
from storage import labels
from storage.stores import Stores, open_stores
from tasks.routing import drafts_of
from tests.benchmarks.labeling_world import Held, held, titled

Said = tuple[RequestState, str]


@dataclass
class Verdict:
    """Requests or answers that are not there, that are there twice, and all else that is not as it should be."""

    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing is amiss."""
        return not (self.lost or self.doubled or self.wrong)

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(self.lost + other.lost, self.doubled + other.doubled, [*self.wrong, *other.wrong])

    def expect(self, what: str, found: object, wanted: object) -> None:
        """Note what is not as it should be."""
        if found != wanted:
            self.wrong.append(f"{what}: {str(found)[:120]} instead of {str(wanted)[:120]}")


def sent(home: Path, run_id: int, *, beside: Sequence[int] = (), others: int = 0) -> Verdict:
    """Whether each request of a run is in the one project of its campaign, once, whole; of runs beside it, too."""
    found, by_key = Verdict(), defaultdict[str, list[Held]](list)
    with open_stores() as stores:
        run = stores.db.get_one(CampaignRun, run_id)
        title = f"dipnet: {stores.db.get_one(Campaign, run.campaign_id).name}"
    projects = titled(home, title)
    found.expect("projects", len(projects), 1)
    for task in (task for project in projects for task in held(home, project)):
        by_key[task.data.get("dipnet_key", "")].append(task)
    found.expect("items of others", len(by_key.pop("", [])), others)
    for each in (run_id, *beside):
        with open_stores() as stores:
            _judge_run(found, stores, stores.db.get_one(CampaignRun, each), by_key)
    found.expect("other keys", list(by_key), [])
    return found


def _judge_run(found: Verdict, stores: Stores, run: CampaignRun, by_key: dict[str, list[Held]]) -> None:
    """Take a run's requests out of what is there, and look at each."""
    drafts, called = drafts_of(stores, run), dict(_named(stores, run.id or 0))
    states = Counter(stores.db.exec(select(Candidate.state).where(Candidate.run_id == run.id)).all())
    for draft in drafts:
        tasks = by_key.pop(draft.key, [])
        found.lost += not tasks
        found.doubled += max(0, len(tasks) - 1)
        data = {"image": draft.uri, "dipnet_key": draft.key, "sample_id": draft.sample_id, "priority": draft.priority}
        guess = (draft.predicted_class, round(draft.predicted_probability, 4), draft.model_version)
        for task in tasks:
            found.expect("data", task.data, data)
            found.expect("predictions", task.predictions, [guess] if draft.predicted_class else [])
        found.expect("the labeller's id", called[draft.key] in {str(task.id) for task in tasks}, True)
    found.expect("state of the run", run.state, RunState.SENT)
    found.expect("states of candidates", states, {CandidateState.SENT: len(drafts)})


def _named(stores: Stores, run_id: int) -> Any:
    query = select(LabelRequest.key, LabelRequest.external_id).join(LabelBatch)
    return stores.db.exec(query.where(LabelBatch.run_id == run_id)).all()


def synced(home: Path, project: int, expected: Mapping[str, Said]) -> Verdict:
    """Whether each answer is stored as it stands, once, no other is, and each request amounts to what is expected."""
    found = Verdict()
    there = {
        number: said
        for task in held(home, project)
        if task.data.get("dipnet_key") in expected
        for number, said in task.answers.items()
    }
    with open_stores() as stores:
        rows = stores.db.exec(select(Label).where(Label.source == "label-studio").order_by(col(Label.id))).all()
        requests = stores.db.exec(select(LabelRequest).where(col(LabelRequest.key).in_(expected))).all()
        candidates = labels.candidates_of(stores.db, requests=requests)
    stored: dict[str, list[Said]] = defaultdict(list)
    for row in rows:
        stored[row.external_id].append((row.state, row.class_name))
    found.lost += len(set(there) - set(stored))
    for number, versions in stored.items():
        found.doubled += sum(before == after for before, after in pairwise(versions))
        found.expect("an answer", versions[-1][0], there.get(number, (RequestState.DELETED, ""))[0])
        if versions[-1][0] is RequestState.LABELLED and number in there:
            found.expect("its class", versions[-1], there[number])
    follows = {RequestState.LABELLED: CandidateState.LABELLED, RequestState.PENDING: CandidateState.SENT}
    found.expect("requests", len(requests), len(expected))
    for request in requests:
        wanted = expected[request.key]
        found.expect("a request", (request.state, request.class_name), wanted)
        found.expect("stale", request.stale, False)
        state = candidates[request.candidate_id or 0].state
        found.expect("a candidate", state, follows.get(wanted[0], CandidateState.SKIPPED))
    return found
