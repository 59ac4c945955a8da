"""What breaks off half-way, or changes behind dipnet's back, stops neither a project nor a campaign."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlmodel import select

from models.base import utc_now
from models.campaign import Candidate
from models.errors import Unavailable
from models.settings import load_settings
from models.states import BatchState, CandidateState, RequestState, RunState
from storage import campaigns, labels
from storage.database import alembic_config
from storage.stores import open_stores
from tasks import labeling, mining, planning, quality, reviewing, routing
from tests.tasks.desk import Desk
from tests.tasks.test_labeling import answer_golden, asked, batch, plan, requests, send, state_of, stored, sync


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    found = Desk()
    monkeypatch.setattr("storage.stores.Stores.labeler", found)
    return found


def killed_after_sending(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> int:
    """A batch whose requests are at the labeller, which dipnet had no time to write down."""
    wanted = plan()
    run_id = planning.plan_run(wanted)
    mining.mine_candidates(run_id)
    batch_id = routing.prepare_batch(run_id, wanted)
    with monkeypatch.context() as patch:
        patch.setattr(routing, "_note_sent", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            routing.send_batch(batch_id)
    assert len(desk.tasks) == 6
    return batch_id


def test_an_answer_to_what_a_killed_send_sent_is_heard_before_and_after_it_is_resumed(
    world: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = killed_after_sending(desk, monkeypatch)
    first, second, *others = asked()
    desk.answer(first, "bar")
    sync()
    assert state_of(first) == (RequestState.LABELLED, "bar")
    sample = next(request.sample_id for request in requests() if request.key == second)
    reviewing.review("c", [sample], accept=False)  # too late
    assert routing.send_batch(batch_id).sent == 6
    for key in (second, *others):
        desk.answer(key, "bar")
    sync()
    assert batch().state is BatchState.COMPLETE
    with open_stores() as stores:
        assert {one.state for one in stores.db.exec(select(Candidate)).all()} == {CandidateState.LABELLED}


def test_a_batch_that_was_rejected_before_it_was_sent_is_never_sent(
    world: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = plan()
    run_id = planning.plan_run(wanted)
    mining.mine_candidates(run_id)
    batch_id = routing.prepare_batch(run_id, wanted)
    quality.set_state(batch_id, BatchState.REJECTED, "the wrong images")
    routing.send_batch(batch_id)
    assert desk.tasks == []
    with open_stores() as stores:
        assert campaigns.get_run(stores.db, run_id=run_id).state is RunState.LABELLED


def test_an_item_that_went_while_another_opinion_was_asked_for_holds_nothing_up(
    world: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(plan(opinions=2, most_opinions=3))
    contested, agreed, *_ = asked()
    for key, said in ((contested, ("bar", "square")), (agreed, ("bar", "bar"))):
        for by, name in zip(("ann", "bob"), said, strict=True):
            desk.answer(key, name, by=by)

    def refuse(*_: object) -> None:
        raise Unavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(Desk, "ask_again", refuse)
        with pytest.raises(Unavailable):
            sync()
        desk.tasks.remove(desk.task(contested))
        sync()
    assert [state_of(key)[0] for key in (contested, agreed)] == ["deleted", "labelled"]


def test_an_item_that_went_with_too_few_answers_stays_deleted_and_counts_again_when_it_returns(
    world: Path, desk: Desk
) -> None:
    send(plan(opinions=2, resolve="dawid-skene"))
    gone, *others = asked()
    desk.answer(gone, "bar", by="ann")
    sync()
    task = desk.task(gone)
    desk.tasks.remove(task)
    sync()
    for key in others:
        for by in ("ann", "bob"):
            desk.answer(key, "bar", by=by)
    assert [one.complete for one in sync()] == [True]
    assert state_of(gone)[0] is RequestState.DELETED
    desk.tasks.append(task)
    desk.answer(gone, "bar", by="bob")
    sync()
    assert state_of(gone) == (RequestState.LABELLED, "bar")


def test_two_who_come_to_agree_need_no_third(world: Path, desk: Desk) -> None:
    send(plan(opinions=2, most_opinions=3))
    key = asked()[0]
    desk.answer(key, "bar", by="ann")
    number = desk.answer(key, "square", by="bob")
    sync()
    desk.correct(key, number, "bar")
    sync()
    assert state_of(key) == (RequestState.LABELLED, "bar")


def test_an_answer_that_was_withdrawn_and_comes_back_as_it_was_counts_again(world: Path, desk: Desk) -> None:
    send(plan())
    key = asked()[0]
    number = desk.answer(key, "bar")
    sync()
    kept = desk.task(key).answers[number]
    desk.withdraw(key, number)
    sync()
    desk.task(key).answers[number] = kept
    desk._touch(desk.task(key))
    sync()
    sync()
    assert state_of(key) == (RequestState.LABELLED, "bar")
    assert [(one.version, one.state.value) for one in stored()] == [(0, "labelled"), (1, "deleted"), (2, "labelled")]


def test_answers_from_before_the_hand_off_are_known_after_the_upgrade(world: Path, desk: Desk) -> None:
    send(plan())
    for key in asked():
        desk.answer(key, "bar")
    sync()
    config = alembic_config(load_settings().resolved_database_url)
    command.downgrade(config, "0003")
    command.upgrade(config, "head")
    sync()
    assert [one.version for one in stored()] == [0] * 6
    assert {(request.class_name, *request.class_names) for request in requests()} == {("bar", "bar")}
    desk.correct(asked()[0], next(iter(desk.task(asked()[0]).answers)), "square")
    sync()
    assert state_of(asked()[0]) == (RequestState.LABELLED, "square")


def test_a_batch_is_not_complete_before_its_golden_items_can_be_judged(world: Path, desk: Desk) -> None:
    send(plan(golden_corpus="train"))
    assert sum(bool(request.expected) for request in requests()) == 5  # of six alone a twentieth would be none
    for key in asked():
        desk.answer(key, "bar")
    assert [one.complete for one in sync()] == [False]
    assert not usable()
    answer_golden(desk, right=5)
    assert [one.complete for one in sync()] == [True]
    assert len(usable()) == 6


def test_to_tick_every_class_answers_no_golden_item(world: Path, desk: Desk) -> None:
    send(plan(golden_corpus="train", choice="multiple"))
    for request in requests():
        desk.answer(request.key, "bar", "square")
    (found,) = sync()
    assert found.state is BatchState.QUARANTINED
    assert found.reason.startswith("0 of 5 golden items")


def test_what_a_rejected_batch_asked_may_be_asked_by_another_campaign(world: Path, desk: Desk) -> None:
    batch_id = send(plan())
    with open_stores() as stores:
        assert len(campaigns.sent_elsewhere(stores.db, campaign_id=0)) == 6
    quality.set_state(batch_id, BatchState.REJECTED, "no")
    with open_stores() as stores:
        assert not campaigns.sent_elsewhere(stores.db, campaign_id=0)
        assert not campaigns.claimed_elsewhere(stores.db, campaign_id=0)


def test_of_two_answered_copies_the_answer_to_the_one_that_went_counts_no_more(
    world: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(plan())
    key = asked()[0]
    desk.answer(key, "bar", by="ann")
    desk.add(desk.task(key).draft)
    copy = [task for task in desk.tasks if task.key == key][1]
    desk._set(copy, "99", ("square",), "bob", None, {})
    sync()
    desk.tasks.remove(copy)
    sync()
    assert state_of(key) == (RequestState.LABELLED, "bar")
    assert listings(monkeypatch) == 1


def test_answers_to_anothers_items_make_no_poll_look_at_everything(
    world: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(plan())
    desk.add(desk.tasks[0].draft.model_copy(update={"key": "another dipnet's"}))
    desk.answer("another dipnet's", "bar")
    for _ in range(2):
        assert [one.foreign for one in sync()] == [1]
    assert listings(monkeypatch) == 1
    desk.answer(asked()[0], "bar")
    sync()
    assert state_of(asked()[0]) == (RequestState.LABELLED, "bar")


def listings(monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a sync asks what changed."""
    count, real = [0], Desk.changes

    def counting(self: Desk, *given: Any, **more: Any) -> Any:
        count[0] += 1
        return real(self, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Desk, "changes", counting)
        sync()
    return count[0]


def test_a_correction_while_the_labeller_is_listed_is_seen_by_the_next_poll(
    world: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(plan())
    first, second, *_ = asked()
    number = desk.answer(first, "square")
    desk.answer(second, "bar")
    real = Desk.changes

    def interrupted(self: Desk, *given: Any, **more: Any) -> Any:
        for place, items in enumerate(real(self, *given, **more)):
            yield items
            if place == 0:
                self.correct(first, number, "bar")
                self.answer(asked()[2], "bar")  # which moves the mark past the correction

    with monkeypatch.context() as patch:
        patch.setattr(Desk, "changes", interrupted)
        patch.setattr(labeling, "TRIES", 1)
        patch.setattr(Desk, "census", lambda *_: None)
        sync()
    sync()
    assert state_of(first) == (RequestState.LABELLED, "bar")


def test_an_answer_counts_once_its_class_is_offered(world: Path, desk: Desk) -> None:
    wanted = plan(budget=6)
    send(wanted)
    key = asked()[0]
    desk.answer(key, "ring")
    sync()
    assert state_of(key)[0] is RequestState.PENDING
    with open_stores() as stores:
        run = campaigns.get_run(stores.db, run_id=batch().run_id)
        routing._project(stores, run, wanted.model_copy(update={"class_names": ["bar", "ring", "square"]}))
    sync()
    assert state_of(key) == (RequestState.LABELLED, "ring")


def test_what_waits_again_gets_a_fresh_link(world: Path, desk: Desk) -> None:
    desk.links_until = utc_now() + timedelta(days=30)
    send(plan())
    key = asked()[0]
    number = desk.answer(key, "bar")
    sync()
    desk.withdraw(key, number)
    sync()
    assert desk.renewed == [key]


def test_what_is_accepted_after_a_send_that_failed_is_sent_too(
    world: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = plan(accept="review")
    run_id = planning.plan_run(wanted)
    mining.mine_candidates(run_id)
    reviewing.review_run("c", accept=["1-2"], discard=[], rest="", sheet=None)
    with monkeypatch.context() as patch:
        patch.setattr(Desk, "send", lambda *_: (_ for _ in ()).throw(Unavailable("down")))
        with pytest.raises(Unavailable):
            reviewing.send("c")
    reviewing.review_run("c", accept=["3-6"], discard=[], rest="", sheet=None)
    assert reviewing.send("c").sent == 6
    assert len(desk.tasks) == 6


def test_a_campaign_under_review_stays_so_unless_it_is_said_otherwise(world: Path, desk: Desk) -> None:
    assert planning.accept_of("c", None) == "auto"
    planning.plan_run(plan(accept="review"))
    assert [planning.accept_of("c", said) for said in (None, True, False)] == ["review", "auto", "review"]


def usable() -> Sequence[object]:
    with open_stores() as stores:
        return labels.resolved_of_batches(stores.db, batches=labels.batches_of(stores.db, campaigns=["c"]))
