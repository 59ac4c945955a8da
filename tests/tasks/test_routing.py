"""Before anything is sent dipnet looks again: what was discarded, labelled or sent elsewhere since is not asked."""

from collections.abc import Callable
from pathlib import Path

import pytest

from models.errors import BadInput, Unavailable
from models.plans import CampaignPlan, SelectionPolicy
from models.states import CandidateState, RunState
from models.values import RequestDraft, Sent
from storage import campaigns
from storage.labelers import OracleLabeler
from storage.stores import open_stores
from tasks import labeling, mining, planning, probing, reviewing, routing

LOOSE = {"near_duplicate_cosine": 1.0, "leak_cosine": 1.0}  # drawings of two shapes are all alike to a CLIP


def plan(campaign: str = "c", **policy: object) -> CampaignPlan:
    chosen = SelectionPolicy.model_validate({"budget": 6, **LOOSE, **policy})
    return CampaignPlan(campaign=campaign, issue="light-bar", corpora=["pool"], policy=chosen)


def mined(wanted: CampaignPlan) -> int:
    run_id = planning.plan_run(wanted)
    mining.mine_candidates(run_id)
    return run_id


def send(run_id: int, wanted: CampaignPlan) -> Sent:
    return routing.send_batch(routing.prepare_batch(run_id, wanted))


def answer() -> None:
    for project_id in labeling.projects_to_sync([]):
        labeling.sync_project(project_id)


def chosen(run_id: int) -> list[str]:
    with open_stores() as stores:
        return [candidate.sample_id for candidate in campaigns.candidates_of(stores.db, run_id=run_id)]


def told(run_id: int) -> tuple[RunState, dict[str, int]]:
    with open_stores() as stores:
        run = campaigns.get_run(stores.db, run_id=run_id)
        return run.state, run.excluded


@pytest.fixture
def went_out(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sample ids that the labeller was given, in order."""
    given: list[str] = []
    real: Callable[..., dict[str, str]] = OracleLabeler.send

    def listen(self: OracleLabeler, project: str, drafts: list[RequestDraft]) -> dict[str, str]:
        given.extend(draft.sample_id for draft in drafts)
        return real(self, project, drafts)

    monkeypatch.setattr(OracleLabeler, "send", listen)
    return given


def test_what_is_discarded_while_the_labeller_is_down_does_not_go_out(world: Path, went_out: list[str]) -> None:
    wanted = plan()
    run_id = mined(wanted)
    batch_id = routing.prepare_batch(run_id, wanted)
    out, *others = chosen(run_id)
    reviewing.review("c", [out], accept=False)
    assert routing.send_batch(batch_id).sent == 5
    assert sorted(went_out) == sorted(others)
    assert routing.send_batch(batch_id).sent == 5
    answer()
    assert told(run_id)[0] is RunState.LABELLED


def test_what_another_campaign_had_labelled_meanwhile_is_not_asked_again(world: Path, went_out: list[str]) -> None:
    first = mined(plan("a"))
    second = mined(plan("b", budget=4))
    assert set(chosen(second)) <= set(chosen(first))
    send(second, plan("b", budget=4))
    answer()
    assert send(first, plan("a")).sent == 2
    assert len(went_out) == len(set(went_out)) == 6
    assert told(first)[1]["labelled since it was mined"] == 4


def test_what_another_campaign_has_sent_is_asked_again_only_where_told(world: Path, went_out: list[str]) -> None:
    runs = {name: mined(plan(name, across_campaigns=name != "c")) for name in "abc"}
    waiting = routing.prepare_batch(runs["b"], plan("b"))
    assert send(runs["a"], plan("a")).sent == 6
    assert routing.send_batch(waiting).sent == 0
    assert told(runs["b"])[1]["sent by another campaign since it was mined"] == 6
    assert send(runs["c"], plan("c", across_campaigns=False)).sent == 6
    assert len(went_out) == 12


def test_a_batch_of_which_nothing_is_left_is_complete_without_the_labeller(
    world: Path, went_out: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = plan(rounds=2)
    run_id = mined(wanted)
    reviewing.review("c", chosen(run_id), accept=False)
    monkeypatch.setattr(OracleLabeler, "open_project", lambda *_, **__: pytest.fail("a project for nothing"))
    found = send(run_id, wanted)
    assert (found.sent, found.note) == (0, "nothing is left to ask: all was discarded, labelled or sent elsewhere")
    assert not went_out
    assert told(run_id)[0] is RunState.LABELLED
    assert [one.campaign for one in planning.plans_to_continue([])] == ["c"]


def test_a_run_that_is_not_mined_is_not_sent(world: Path) -> None:
    run_id = planning.plan_run(plan())
    with pytest.raises(BadInput, match="has no candidates to send; mine it first"):
        routing.prepare_batch(run_id, plan())


def test_only_what_a_person_said_of_unsent_candidates_is_learnt_from(world: Path) -> None:
    wanted = plan().model_copy(update={"route": False})
    run_id = mined(wanted)
    batch_id = routing.prepare_batch(run_id, wanted)  # the labeller is down; nobody has looked at anything
    liked = chosen(run_id)[0]
    reviewing.review("c", [liked], accept=True)
    later = mined(plan(budget=12).model_copy(update={"route": False}))
    with open_stores() as stores:
        run = campaigns.get_run(stores.db, run_id=later)
        assert run.found["answers_learnt_from"] == 1
        campaign = campaigns.get_campaign(stores.db, name="c")
        history = probing.aim(stores, campaign, run, planning.corpora_of(stores, run)).history
    assert (history.hits.tolist(), history.weights.tolist()) == ([True], [0.5])
    routing.send_batch(batch_id)
    with open_stores() as stores:
        assert campaigns.count_states(stores.db, run_id=run_id) == {CandidateState.SENT: 6}


def test_what_waits_for_the_labeller_is_left_to_its_campaign(world: Path) -> None:
    first = mined(plan("a"))
    routing.prepare_batch(first, plan("a"))
    assert not set(chosen(first)) & set(chosen(mined(plan("b"))))
    answer()  # nothing was sent, so nothing can be answered
    assert told(first)[0] is RunState.MINED


def test_one_projects_trouble_does_not_stop_the_others(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.labeling import sync_labels

    runs = []
    for name in "ab":
        runs.append(mined(plan(name)))
        send(runs[-1], plan(name))
    real: Callable[..., object] = labeling.sync_project

    def sync(project_id: int) -> object:
        if project_id == 1:
            raise Unavailable("Label Studio does not answer; start it")
        return real(project_id)

    monkeypatch.setattr(labeling, "sync_project", sync)
    with pytest.raises(
        Unavailable, match=r"label project 1: Label Studio does not answer.*the other 1 batches are synced"
    ):
        sync_labels.fn()
    assert [told(run_id)[0] for run_id in runs] == [RunState.SENT, RunState.LABELLED]
