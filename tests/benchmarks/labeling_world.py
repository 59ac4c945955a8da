"""What the labelling benchmark works on: rows as mining leaves them, answers, and what a Label Studio truly holds.

Truth is read from Label Studio's own SQLite file, and answers are written there as its API would write them: eleven a
second is too slow for a thousand kills' worth of answers. `test_handoff.py` holds both against the API.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import insert
from sqlmodel import Session

from models.campaign import Campaign, CampaignRun, Candidate, Exemplar, Issue
from models.corpus import EncoderSpec, Sample
from models.learning import DatasetVersion, ModelVersion, TrainingRun
from models.plans import CampaignPlan, SelectionPolicy
from models.states import Arm, IssueState, RequestState, RunState
from storage import campaigns
from storage.labelstudio_server import RELEASE, LabelStudioServer
from storage.stores import open_stores

CLASSES = ["bar", "square"]
ANNOTATION = (
    "result, was_cancelled, created_at, updated_at, task_id, lead_time, result_count, completed_by_id, ground_truth, "
    "project_id, updated_by_id, bulk_created"
)
# A hook of a project may lead to loopback, for tests alone.
OPEN_TO_LOOPBACK = {
    "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS": "false",
    "LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS": "10.0.0.0/8",
}


class House(NamedTuple):
    """A dipnet of its own, and its way to a Label Studio."""

    root: Path
    url: str
    token: str

    def environment(self) -> dict[str, str]:
        """Its settings."""
        return {
            "DIPNET_ROOT": str(self.root),
            "DIPNET_LABELER": "label-studio",
            "DIPNET_LABEL_STUDIO_URL": self.url,
            "DIPNET_LABEL_STUDIO_TOKEN": self.token,
            # Nobody listens there: a hook is made, and what it tells is lost.
            "DIPNET_RECEIVER_URL": "http://127.0.0.1:9",
            "DIPNET_RECEIVER_SECRET": "0123456789abcdef" * 4,
        }


def house_at(root: Path, server: LabelStudioServer, *, url: str = "") -> House:
    """A house that goes to a server, or along another way to it."""
    return House(root, url or server.url, server.token.get_secret_value())


@contextmanager
def living_in(house: House) -> Iterator[None]:
    """dipnet's settings are this house's while the block lasts."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("DIPNET_")]:
        del os.environ[name]
    os.environ |= house.environment()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def migrated_home(folder: Path) -> Path:
    """A Label Studio's data directory in the folder, copied from one that was migrated before; made once a machine."""
    kept = Path(tempfile.gettempdir()) / f"dipnet-label-studio-{RELEASE}-{os.getuid()}"
    if not kept.is_dir():
        fresh = Path(tempfile.mkdtemp(prefix="dipnet-label-studio-"))
        with LabelStudioServer(fresh):
            pass
        fresh.rename(kept)
    shutil.copytree(kept, folder / "label-studio")
    return folder / "label-studio"


def plan_of(campaign: str) -> CampaignPlan:
    """The plan of a campaign's runs."""
    return CampaignPlan(campaign=campaign, issue=campaign, corpora=["pool"], class_names=CLASSES)


def mined(campaign: str, count: int, *, number: int = 1) -> int:
    """A run of so many candidates as mining leaves it: its id. Every seventh has no prediction."""
    names = [sha256(f"{campaign}/{number}/{place}".encode()).hexdigest() for place in range(count)]
    with open_stores() as stores:
        _add_samples(stores.db, names)
        run_id = _run(stores.db, campaign, number)
        stores.db.connection().execute(
            insert(Candidate), [_candidate(run_id, name, rank, count) for rank, name in enumerate(names)]
        )
    return run_id


def _add_samples(db: Any, names: Sequence[str]) -> None:
    db.connection().execute(
        insert(Sample), [{"id": name, "uri": f"https://images.example/{name}.png"} for name in names]
    )


def _candidate(run_id: int, name: str, rank: int, count: int) -> dict[str, Any]:
    known = bool(rank % 7)
    return {
        "run_id": run_id,
        "sample_id": name,
        "rank": rank,
        "score": 1 - rank / count,
        "score_version": "v",
        "nearest_exemplar": "",
        "similarity": 0.5,
        "arm": Arm.EXPLOIT,
        "predicted_class": CLASSES[rank % 2] if known else "",
        "predicted_probability": round(0.5 + rank / count / 2, 4) if known else 0.0,
    }


def _run(db: Session, campaign: str, number: int) -> int:
    """A campaign's run; the first makes the campaign, its issue, two exemplars and a model."""
    key = sha256(f"{campaign}/{number}".encode()).hexdigest()
    found = campaigns.find_campaign(db, name=campaign) or _campaign(db, campaign)
    run = CampaignRun(
        campaign_id=found.id or 0,
        key=key,
        plan_key=campaign,
        series=1,
        round=number,
        shards_key="",
        last_shard=0,
        encoder_id=1,
        issue_version=1,
        policy=SelectionPolicy().model_dump(),
        model_id=1,
        state=RunState.MINED,
    )
    db.add(run)
    db.flush()
    return run.id or 0


def _campaign(db: Session, name: str) -> Campaign:
    exemplars = [sha256(f"{name}/exemplar-{place}".encode()).hexdigest() for place in range(2)]
    _add_samples(db, exemplars)
    if db.get(ModelVersion, 1) is None:
        for row in (
            EncoderSpec(id=1, key="x", name="x", dim=2, weights_sha256="0", preprocessing=""),
            DatasetVersion(id=1, content_hash="x", listing_key="", samples=0),
            TrainingRun(id=1, key="x", dataset_id=1, encoder_id=1, trainer="x"),
            ModelVersion(id=1, training_run_id=1, name="m", weights_key="", weights_sha256="0" * 64),
        ):
            db.add(row)
            db.flush()
    issue = Issue(name=name, class_name=CLASSES[0], state=IssueState.COLLECTING, version=1)
    db.add(issue)
    db.flush()
    for place, sample_id in enumerate(exemplars):
        db.add(Exemplar(issue_id=issue.id or 0, sample_id=sample_id, positive=not place, added_in_version=1))
    found = Campaign(name=name, issue_id=issue.id or 0)
    db.add(found)
    db.flush()
    return found


class Held(NamedTuple):
    """A task as Label Studio has it."""

    id: int
    data: dict[str, Any]
    predictions: list[tuple[str, float, str]]  # class, score, model version
    answers: dict[str, tuple[RequestState, str]]  # state and class by id


def titled(home: Path, title: str) -> list[int]:
    """The projects of that title."""
    with _opened(home) as db:
        return [row[0] for row in db.execute("SELECT id FROM project WHERE title = ? ORDER BY id", (title,))]


def held(home: Path, project: int) -> list[Held]:
    """Every task of a project, with what belongs to it."""
    with _opened(home) as db:
        tasks = {
            number: Held(number, json.loads(data), [], {})
            for number, data in db.execute("SELECT id, data FROM task WHERE project_id = ? ORDER BY id", (project,))
        }
        for of, result, score, version in db.execute(
            "SELECT task_id, result, score, model_version FROM prediction WHERE project_id = ?", (project,)
        ):
            tasks[of].predictions.append((_class_in(json.loads(result)), round(score, 4), version))
        for number, of, result, skipped in db.execute(
            "SELECT id, task_id, result, was_cancelled FROM task_completion WHERE project_id = ?", (project,)
        ):
            tasks[of].answers[str(number)] = _said(json.loads(result), skipped=bool(skipped))
    return list(tasks.values())


def _said(result: list[dict[str, Any]], *, skipped: bool) -> tuple[RequestState, str]:
    if skipped:
        return RequestState.SKIPPED, ""
    return (RequestState.LABELLED, _class_in(result)) if result else (RequestState.EMPTY, "")


def _class_in(result: list[dict[str, Any]]) -> str:
    return str(result[0]["value"]["choices"][0])


@contextmanager
def _opened(home: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(home / "label_studio.sqlite3", timeout=60)) as db, db:
        yield db


def answer(home: Path, said: Mapping[int, tuple[RequestState, str]]) -> None:
    """Answer tasks, by their ids, as Label Studio's API would write it down. A skip keeps its pre-filled result."""
    now = datetime.now(UTC).replace(tzinfo=None).isoformat(sep=" ")
    with _opened(home) as db:
        (user,) = db.execute("SELECT min(id) FROM htx_user").fetchone()
        where = dict(db.execute("SELECT id, project_id FROM task"))
        rows = []
        for task, (state, name) in said.items():
            choice = [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [name]}}]
            result = [] if state is RequestState.EMPTY else choice
            skipped = state is RequestState.SKIPPED
            more = (len(result), user, False, where[task], user, False)
            rows.append((json.dumps(result), skipped, now, now, task, 2.0, *more))
        marks = ", ".join("?" * len(ANNOTATION.split(",")))
        db.executemany(f"INSERT INTO task_completion ({ANNOTATION}) VALUES ({marks})", rows)
        db.executemany(
            "UPDATE task SET total_annotations = total_annotations + NOT ?1, is_labeled = is_labeled OR NOT ?1, "
            "cancelled_annotations = cancelled_annotations + ?1, updated_at = ?2, updated_by_id = ?3 WHERE id = ?4",
            [(state is RequestState.SKIPPED, now, user, task) for task, (state, _) in said.items()],
        )


def forget_tasks(home: Path, project: int, *, above: int) -> None:
    """Take away the unanswered tasks that came after that one."""
    with _opened(home) as db:
        for table, column in (("prediction", "task_id"), ("task", "id")):
            db.execute(f"DELETE FROM {table} WHERE project_id = ? AND {column} > ?", (project, above))
