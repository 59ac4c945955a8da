"""A dipnet house with mined runs that were made up row by row: nothing is embedded, and every image lies on the web."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pydantic import SecretStr
from sqlmodel import Session, select

from models.campaign import Campaign, CampaignRun, Candidate, Exemplar, Issue
from models.corpus import EncoderSpec, Sample
from models.learning import DatasetVersion, ModelVersion, TrainingRun
from models.plans import CampaignPlan, LabelPolicy
from models.settings import PREFIX
from models.states import Arm, IssueState, RunState
from storage.campaigns import find_campaign
from storage.database import open_engine, transaction

ISSUE, CORPUS = "white-shiba", "pool"
CLASSES = ("cat", "dog", "fox")
POLICY = LabelPolicy(most_opinions=3)  # so that a disagreement makes a sync ask the labeller for more


class World(NamedTuple):
    """A house, and a run in it of which nothing was sent yet."""

    root: Path
    plan: CampaignPlan
    run_id: int


def world(folder: Path, count: int, *, predictions: bool = True) -> World:
    """A new house in this folder whose one campaign has mined so many images."""
    return plant(folder, "handoff", count, predictions=predictions)


def plant(folder: Path, campaign: str, count: int, *, predictions: bool = True, round_: int = 1) -> World:
    """A campaign's round that has mined so many images of its own, in the house in this folder, made where there is none."""
    plan = CampaignPlan(campaign=campaign, issue=ISSUE, corpora=[CORPUS], class_names=list(CLASSES), labelling=POLICY)
    engine = open_engine(f"sqlite:///{folder / 'dipnet.db'}")
    try:
        with transaction(engine) as db:
            issue = db.exec(select(Issue)).first() or _new_issue(db)
            model = db.exec(select(ModelVersion)).first() or _new_model(db)
            run = _new_run(db, issue, plan, model if predictions else None, round_)
            _mine(db, run, count, predictions=predictions)
            return World(folder, plan, run.id or 0)
    finally:
        engine.dispose()


@contextmanager
def living_in(root: Path, url: str, token: SecretStr, **more: str) -> Iterator[None]:
    """Be the dipnet of that house, and label at that server, while the block lasts."""
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(PREFIX)}
    settings = environment(root, url, token) | more
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            os.environ.pop(name, None)
        os.environ.update(before)


def environment(root: Path, url: str, token: SecretStr) -> dict[str, str]:
    """The settings of the dipnet that lives there."""
    return {
        "DIPNET_ROOT": str(root),
        "DIPNET_LABELER": "label-studio",
        "DIPNET_LABEL_STUDIO_URL": url,
        "DIPNET_LABEL_STUDIO_TOKEN": token.get_secret_value(),
    }


# Nobody listens there: the project's webhook is made, and what it tells is lost. Links expire, and are renewed.
OPEN_TO_LOOPBACK = {  # a server with these makes webhooks that lead there
    "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS": "false",
    "LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS": "10.0.0.0/8",
}
RECEIVER = {"DIPNET_RECEIVER_URL": "http://127.0.0.1:9", "DIPNET_RECEIVER_SECRET": "0123456789abcdef" * 4}


def link_of(sample_id: str) -> str:
    """Where the image of a sample lies."""
    return f"https://images.example/{sample_id}.jpg"


def _name(*parts: object) -> str:
    return hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()


def _new_issue(db: Session) -> Issue:
    """An issue that two images show and that a third one is not."""
    issue = Issue(name=ISSUE, class_name=CLASSES[1], state=IssueState.COLLECTING, version=1)
    shown = [Sample(id=_name("exemplar", n), uri=link_of(_name("exemplar", n))) for n in range(3)]
    db.add_all([issue, *shown])
    db.flush()
    db.add_all(
        Exemplar(issue_id=issue.id or 0, sample_id=sample.id, positive=number < 2, added_in_version=1)
        for number, sample in enumerate(shown)
    )
    return issue


def _new_model(db: Session) -> ModelVersion:
    """A model that was never fitted, with all that it is said to come from."""
    encoder = EncoderSpec(key=_name("encoder"), name="none", dim=1, weights_sha256=_name("weights"), preprocessing="")
    data = DatasetVersion(content_hash=_name("data"), listing_key="none", samples=0, class_names=list(CLASSES))
    db.add_all([encoder, data])
    db.flush()
    fit = TrainingRun(key=_name("fit"), dataset_id=data.id or 0, encoder_id=encoder.id or 0, trainer="none")
    db.add(fit)
    db.flush()
    model = ModelVersion(
        training_run_id=fit.id or 0,
        name="baseline",
        weights_key="none",
        weights_sha256=_name("head"),
        class_names=list(CLASSES),
    )
    db.add(model)
    db.flush()
    return model


def _new_run(db: Session, issue: Issue, plan: CampaignPlan, model: ModelVersion | None, round_: int) -> CampaignRun:
    campaign = find_campaign(db, name=plan.campaign)
    campaign = campaign or Campaign(name=plan.campaign, issue_id=issue.id or 0, plan=plan.model_dump(mode="json"))
    db.add(campaign)
    db.flush()
    run = CampaignRun(
        campaign_id=campaign.id or 0,
        key=_name("run", plan.campaign, round_),
        plan_key=_name("plan", plan.campaign),
        series=1,
        round=round_,
        shards_key=_name("shards"),
        last_shard=0,
        encoder_id=db.exec(select(EncoderSpec)).one().id or 0,
        issue_version=issue.version,
        corpora=plan.corpora,
        policy=plan.policy.model_dump(),
        model_id=model.id if model else None,
        state=RunState.MINED,
    )
    db.add(run)
    db.flush()
    return run


def _mine(db: Session, run: CampaignRun, count: int, *, predictions: bool) -> None:
    """So many samples of this run's own, each a candidate; a third of them is taken for each class."""
    samples = [Sample(id=_name(run.key, n), uri=link_of(_name(run.key, n))) for n in range(count)]
    db.add_all(samples)
    db.flush()
    db.add_all(
        Candidate(
            run_id=run.id or 0,
            sample_id=sample.id,
            rank=rank,
            score=1 - rank / count,
            score_version="none",
            nearest_exemplar=_name("exemplar", 0),
            similarity=0.5,
            arm=Arm.EXPLOIT,
            predicted_class=CLASSES[rank % 3] if predictions else "",
            predicted_probability=round(0.5 + 0.4 * (count - rank) / count, 4) if predictions else 0.0,
        )
        for rank, sample in enumerate(samples)
    )
    run.scanned = count
    db.flush()
