"""What is held against the server, read directly, and against dipnet's own rows, after something has broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlmodel import col, select

from models.campaign import CampaignRun, Candidate
from models.labeling import Label, LabelBatch, LabelRequest
from models.learning import ModelVersion
from models.states import CandidateState, RequestState, RunState
from storage.stores import Stores, open_stores
from tasks.routing import key_of
from tests.benchmarks.handoff_direct import FOREIGN, Direct, Task
from tests.benchmarks.handoff_world import World, link_of

Version = tuple[RequestState, tuple[str, ...]]


@dataclass
class Outcome:
    """What so many cases came to. `details` names what went wrong and where; `tidied` were doubled until the next sync."""

    cases: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    escaped: int = 0
    details: list[str] = field(default_factory=list)
    tidied: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing at all went wrong."""
        return not (self.lost or self.doubled or self.wrong or self.escaped)

    def note(self, kind: str, count: int, what: str) -> None:
        """Count so many of a kind, unless there are none."""
        if count:
            setattr(self, kind, getattr(self, kind) + count)
            self.details.append(f"{count} {kind}: {what}")

    def add(self, other: Outcome, case: str) -> None:
        """Count a case's outcome as well."""
        for name in ("cases", "lost", "doubled", "wrong", "escaped", "tidied"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.details += [f"{case}: {detail}" if case else detail for detail in other.details]


class Given(NamedTuple):
    """What was annotated: states by key, and of every annotation its key and the versions that a sync could see."""

    states: Mapping[str, tuple[RequestState, str]]
    keys: Mapping[str, str]
    versions: Mapping[str, Sequence[Version]]


def check_sent(world: World, direct: Direct, *, foreign: bool, beside: Collection[str] = ()) -> Outcome:
    """Whether the run's requests are there once each, with the right data and one prediction, and nothing else.

    What lies beside, under other keys, is not looked at.
    """
    found = Outcome()
    projects = direct.projects(world.plan.campaign)
    found.note("doubled", len(projects) - 1 if projects else 0, f"projects of one title, {projects}")
    tasks = [task for project in projects for task in direct.tasks(project) if task.key not in beside]
    with open_stores() as stores:
        run = stores.db.get_one(CampaignRun, world.run_id)
        found_candidates = stores.db.exec(select(Candidate).where(Candidate.run_id == world.run_id)).all()
        requests = _requests(stores, world)
        model = stores.db.get_one(ModelVersion, run.model_id) if run.model_id else None
    candidates = {key_of(run, candidate.sample_id): candidate for candidate in found_candidates}
    _check_copies(found, tasks, candidates.keys(), foreign=foreign)
    version = f"{model.name}-{model.weights_sha256[:8]}" if model else ""
    wrong = [task for task in tasks if task.key in candidates and not _is_right(task, candidates[task.key], version)]
    found.note("wrong", len(wrong), f"tasks, {wrong[:1]}")
    found.note("wrong", sum(one.state is not CandidateState.SENT for one in found_candidates), "candidates, not 'sent'")
    found.note("wrong", int(run.state is not RunState.SENT), f"run, '{run.state}'")
    found.note("wrong", len(requests.keys() ^ candidates.keys()), "requests that are not the candidates'")
    ids = {task.key: str(task.id) for task in sorted(tasks, key=lambda task: -task.id)}
    astray = [key for key, request in requests.items() if request.external_id != ids.get(key)]
    found.note("wrong", len(astray), "requests, known by another id than their first task's")
    return found


def check_synced(world: World, given: Given) -> Outcome:
    """Whether every request is what was annotated, and every version of every annotation is a row, once."""
    found = Outcome()
    with open_stores() as stores:
        requests = _requests(stores, world)
        ids = [request.id for request in requests.values()]
        rows = [row for row in stores.db.exec(select(Label).order_by(col(Label.id))).all() if row.request_id in ids]
    for key, wanted in given.states.items():
        request = requests[key]
        known = (request.state, request.class_name)
        kind = "lost" if request.state is RequestState.PENDING else "wrong"
        found.note(kind, int(known != wanted), f"request {key[:6]} is {known}, not {wanted}")
    by_annotation: dict[str, list[Label]] = {name: [] for name in given.versions}
    for row in rows:
        by_annotation.setdefault(row.external_id, []).append(row)
    for name, stored in by_annotation.items():
        _check_versions(found, name, stored, given.versions.get(name, ()))
    by_id = {request.id: request for request in requests.values()}
    astray = [row for row in rows if _strays(row, by_id[row.request_id], given)]
    found.note("wrong", len(astray), f"answers of another image, {astray[:1]}")
    return found


def check_present(world: World, direct: Direct, keys: Collection[str], *, overlaps: Mapping[str, int]) -> Outcome:
    """Whether just these items are there once each, open to so many annotators, and what is not ours is as it was."""
    found = Outcome()
    (project,) = direct.projects(world.plan.campaign)
    tasks = direct.tasks(project)
    _check_copies(found, tasks, keys, foreign=True)
    open_to = {task.key: task.overlap for task in tasks}
    found.note("lost", sum(open_to.get(key) != wanted for key, wanted in overlaps.items()), "calls for another opinion")
    return found


def _requests(stores: Stores, world: World) -> dict[str, LabelRequest]:
    query = select(LabelRequest).join(LabelBatch).where(LabelBatch.run_id == world.run_id)
    return {request.key: request for request in stores.db.exec(query).all()}


def _check_copies(found: Outcome, tasks: Sequence[Task], keys: Collection[str], *, foreign: bool) -> None:
    """Each key once, no other key, and the foreign tasks untouched."""
    copies = Counter(task.key for task in tasks if task.key)
    found.note("lost", sum(key not in copies for key in keys), "items that are not there")
    found.note("doubled", sum(copies[key] - 1 for key in keys if copies[key] > 1), "items that are there again")
    found.note("wrong", sum(key not in keys for key in copies), "items that are there and should not be")
    others = sorted(str(task.data["image"]) for task in tasks if not task.key)
    wanted = [one["image"] for one in FOREIGN] if foreign else []
    found.note("wrong", int(others != wanted), f"foreign tasks, {others}")


def _is_right(task: Task, candidate: Candidate, version: str) -> bool:
    """Whether a task shows its candidate's image and the one prediction for it."""
    shown = (task.data["sample_id"], task.data["image"]) == (candidate.sample_id, link_of(candidate.sample_id))
    guess = [(version, candidate.predicted_probability, (candidate.predicted_class,))]
    return shown and task.predictions == (guess if candidate.predicted_class else [])


def _check_versions(found: Outcome, name: str, stored: Sequence[Label], wanted: Sequence[Version]) -> None:
    known = [(row.state, tuple(row.class_names)) for row in stored]
    # What a withdrawn answer said is said by the version before.
    wanted = [(state, () if state is RequestState.DELETED else classes) for state, classes in wanted]
    kind = "lost" if len(known) < len(wanted) else "doubled" if len(known) > len(wanted) else "wrong"
    found.note(
        kind, max(1, abs(len(known) - len(wanted))) * (known != wanted), f"answer {name} is {known}, not {wanted}"
    )


def _strays(row: Label, request: LabelRequest, given: Given) -> bool:
    return row.sample_id != request.sample_id or given.keys.get(row.external_id) != request.key
