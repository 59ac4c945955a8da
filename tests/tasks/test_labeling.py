"""What comes back is told apart, stored once, and may be changed by people at any time."""

import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import select

from models.campaign import Candidate
from models.errors import BadInput, Unavailable
from models.labeling import Label, LabelBatch, LabelProject, LabelRequest
from models.plans import CampaignPlan, LabelPolicy, SelectionPolicy
from models.retraining import RetrainPlan
from models.states import BatchState, CandidateState, RequestState, RunState
from models.values import Synced
from storage import campaigns, labels
from storage.stores import open_stores
from tasks import datasets, golden, labeling, learning, mining, planning, quality, resolving, reviewing, routing
from tests.tasks.desk import Desk

LOOSE = {"near_duplicate_cosine": 1.0, "leak_cosine": 1.0}


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    found = Desk()
    monkeypatch.setattr("storage.stores.Stores.labeler", found)
    return found


def plan(*, budget: int = 6, **labelling: object) -> CampaignPlan:
    chosen = SelectionPolicy.model_validate({"budget": budget, **LOOSE})
    return CampaignPlan(
        campaign="c",
        issue="light-bar",
        corpora=["pool"],
        policy=chosen,
        labelling=LabelPolicy.model_validate(labelling),
    )


def send(wanted: CampaignPlan) -> int:
    run_id = planning.plan_run(wanted)
    mining.mine_candidates(run_id)
    return routing.send_batch(routing.prepare_batch(run_id, wanted)).batch_id


def sync() -> list[Synced]:
    return [one for project_id in labeling.projects_to_sync([]) for one in labeling.sync_project(project_id)]


def requests() -> Sequence[LabelRequest]:
    with open_stores() as stores:
        return stores.db.exec(select(LabelRequest).order_by(LabelRequest.position)).all()  # type: ignore[arg-type]


def state_of(key: str) -> tuple[RequestState, str]:
    (found,) = [request for request in requests() if request.key == key]
    return found.state, found.class_name


def batch() -> LabelBatch:
    with open_stores() as stores:
        return stores.db.exec(select(LabelBatch)).one()


def stored() -> Sequence[Label]:
    with open_stores() as stores:
        return stores.db.exec(select(Label).where(Label.source == "desk").order_by(Label.id)).all()  # type: ignore[arg-type]


def asked() -> list[str]:
    return [request.key for request in requests() if not request.expected]


def test_pending_labelled_skipped_empty_and_deleted_are_told_apart(world: Path, desk: Desk) -> None:
    send(plan())
    labelled, skipped, empty, deleted, *pending = asked()
    desk.answer(labelled, "bar")
    desk.answer(skipped, "bar", state=RequestState.SKIPPED)
    desk.answer(empty)
    desk.tasks.remove(desk.task(deleted))
    desk.foreign = 3
    (found,) = sync()
    assert found.states == {
        RequestState.LABELLED: 1,
        RequestState.SKIPPED: 1,
        RequestState.EMPTY: 1,
        RequestState.DELETED: 1,
        RequestState.PENDING: len(pending),
    }
    assert (found.new_labels, found.foreign, found.complete) == (3, 3, False)
    with open_stores() as stores:
        states = [one.state for one in stores.db.exec(select(Candidate)).all()]
    assert sorted(states) == ["labelled", "sent", "sent", "skipped", "skipped", "skipped"]
    assert [one.new_labels for one in sync()] == [0]
    for key in pending:
        desk.answer(key, "square")
    assert [one.complete for one in sync()] == [True]
    assert len(stored()) == 5


def test_a_correction_supersedes_and_its_history_is_kept(world: Path, desk: Desk) -> None:
    send(plan())
    key = asked()[0]
    number = desk.answer(key, "square")
    sync()
    desk.correct(key, number, "bar")
    assert [one.new_labels for one in sync()] == [1]
    assert state_of(key) == (RequestState.LABELLED, "bar")
    assert [(one.external_id, one.class_name) for one in stored()] == [(number, "square"), (number, "bar")]
    desk.correct(key, number, state=RequestState.SKIPPED)
    sync()
    assert state_of(key) == (RequestState.SKIPPED, "")


def test_a_withdrawn_answer_waits_again(world: Path, desk: Desk) -> None:
    send(plan())
    key = asked()[0]
    number = desk.answer(key, "bar")
    sync()
    desk.withdraw(key, number)
    assert [one.new_labels for one in sync()] == [1]
    assert state_of(key) == (RequestState.PENDING, "")
    with open_stores() as stores:
        assert {one.state for one in stores.db.exec(select(Candidate)).all()} == {CandidateState.SENT}
    desk.answer(key, "square")
    sync()
    assert state_of(key) == (RequestState.LABELLED, "square")
    assert [one.state.value for one in stored()] == ["labelled", "deleted", "labelled"]


def test_what_was_answered_stays_when_its_item_is_deleted_and_comes_back_with_it(world: Path, desk: Desk) -> None:
    send(plan())
    answered, silent, *_ = asked()
    desk.answer(answered, "bar")
    sync()
    gone = [desk.task(key) for key in (answered, silent)]
    for task in gone:
        desk.tasks.remove(task)
    sync()
    assert [state_of(key)[0] for key in (answered, silent)] == ["labelled", "deleted"]
    assert [one.new_labels for one in sync()] == [0]
    desk.tasks += gone
    sync()
    assert [state_of(key)[0] for key in (answered, silent)] == ["labelled", "pending"]


def test_a_correction_of_a_complete_batch_still_arrives(world: Path, desk: Desk) -> None:
    send(plan())
    numbers = {key: desk.answer(key, "square") for key in asked()}
    assert [one.complete for one in sync()] == [True]
    assert sync() == []
    key, number = next(iter(numbers.items()))
    desk.correct(key, number, "bar")
    assert [(one.new_labels, one.complete) for one in sync()] == [(1, True)]
    assert state_of(key) == (RequestState.LABELLED, "bar")


def test_clocks_that_are_wrong_or_set_back_lose_nothing(world: Path, desk: Desk) -> None:
    send(plan())
    first, second, third, *_ = asked()
    desk.now += timedelta(days=400)  # far ahead of ours
    number = desk.answer(first, "square")
    sync()
    desk.now -= timedelta(days=800)  # and then far behind its own watermark
    desk.answer(second, "bar")
    desk.answer(third, state=RequestState.SKIPPED)
    sync()
    assert [state_of(key)[0] for key in (second, third)] == ["labelled", "skipped"]
    desk.correct(first, number, "bar")
    with open_stores() as stores:  # counts do not change with a correction; a day later everything is looked at
        project = stores.db.exec(select(LabelProject)).one()
        assert project.swept_at is not None
        project.swept_at -= labeling.SWEEP_EVERY + timedelta(minutes=1)
        stores.db.add(project)
    sync()
    assert state_of(first) == (RequestState.LABELLED, "bar")


def test_items_that_are_there_twice_are_tidied_and_answers_to_both_count_once(world: Path, desk: Desk) -> None:
    send(plan())
    first, second, *_ = asked()
    for key in (first, second):
        desk.add(desk.task(key).draft)  # an import that the server still had in hand
    spare = [task for task in desk.tasks if task.key == second][1]
    desk.answer(second, "bar", by="ann")
    desk._set(spare, "99", ("bar",), "bob", None, {})
    sync()
    assert {key: len(ids) for key, ids in desk.present("p1").items() if len(ids) > 1} == {second: 2}
    assert [state_of(key) for key in (first, second)] == [("pending", ""), ("labelled", "bar")]
    with open_stores() as stores:
        assert stores.db.exec(select(LabelProject)).one().census["doubled"] == 1
    assert [one.new_labels for one in sync()] == [0]


def test_another_opinion_is_asked_of_the_copy_that_was_answered(world: Path, desk: Desk) -> None:
    send(plan(most_opinions=3))
    first, second, third, *_ = asked()
    desk.answer(third, "bar")
    sync()
    for key in (first, second):
        desk.add(desk.task(key).draft)
    _, copy = (task for task in desk.tasks if task.key == first)
    for number, by, said in (("98", "ann", "bar"), ("99", "bob", "square")):
        desk._set(copy, number, (said,), by, None, {})
    sync()
    (kept,) = (task for task in desk.tasks if task.key == first)
    assert (kept, kept.overlap) == (copy, 3)
    called = {request.key: request.external_id for request in requests()}
    assert called[first] == str(copy.number)
    assert [called[second]] == desk.present("p1")[second]


def test_answers_outside_the_schema_are_kept_shown_and_asked_again(world: Path, desk: Desk) -> None:
    batch_id = send(plan())
    unknown, several, other, *_ = asked()
    desk.answer(unknown, "hexagon")
    desk.answer(several, "bar", "square")
    desk.answer(other, "bar", wrong="it answers 'mood', which was not asked")
    (found,) = sync()
    assert (found.rejected, found.states) == (3, {RequestState.PENDING: 6})
    assert [row["rejected"] for row in quality.rejected_rows(batch_id)] == [
        "class 'hexagon' was not offered",
        "it names several classes",
        "it answers 'mood', which was not asked",
    ]
    assert [desk.task(key).overlap for key in (unknown, several, other)] == [2, 2, 2]
    desk.answer(unknown, "bar", by="bob")
    sync()
    assert state_of(unknown) == (RequestState.LABELLED, "bar")


def test_several_classes_come_back_where_several_may_be_chosen(world: Path, desk: Desk) -> None:
    send(plan(choice="multiple"))
    key, *others = asked()
    desk.answer(key, "bar", "square")
    for other in others:
        desk.answer(other, "bar")
    assert [one.complete for one in sync()] == [True]
    assert desk.briefs[-1].multiple
    found = next(request for request in requests() if request.key == key)
    assert (found.state, found.class_name, found.class_names) == (RequestState.LABELLED, "", ["bar", "square"])
    assert found.names("bar")
    with open_stores() as stores:
        rows = labels.resolved_of_batches(stores.db, batches=labels.batches_of(stores.db, campaigns=["c"]))
        assert datasets.listing_of(rows, without=set()).num_rows == 5


def test_a_list_that_is_empty_while_there_are_answers_changes_nothing(
    world: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(plan())
    desk.answer(asked()[0], "bar")
    sync()
    with monkeypatch.context() as patch:
        patch.setattr(Desk, "present", lambda *_: {})
        desk.foreign, desk.tasks[3].key = 1, desk.tasks[3].key
        desk.tasks.pop()
        with pytest.raises(Unavailable, match="nothing was changed: sync again later"):
            sync()
    with monkeypatch.context() as patch:
        patch.setattr(Desk, "changes", lambda *_, **__: iter(()))
        with pytest.raises(Unavailable, match="counts answers and lists none; nothing was changed"):
            sync()
    assert state_of(asked()[0]) == (RequestState.LABELLED, "bar")


def test_two_syncs_and_two_sends_at_once_have_one_effect(world: Path, desk: Desk) -> None:
    wanted = plan()
    run_id = planning.plan_run(wanted)
    mining.mine_candidates(run_id)
    at_once(lambda: routing.send_batch(routing.prepare_batch(run_id, wanted)))
    assert len(desk.tasks) == len(asked()) == 6
    for key in asked():
        desk.answer(key, "bar")
    at_once(sync)
    assert len(stored()) == 6
    assert batch().state is BatchState.COMPLETE


def test_what_a_killed_send_left_at_the_labeller_stays_ours_even_when_it_is_not_wanted_any_more(
    world: Path, desk: Desk
) -> None:
    wanted = plan()
    run_id = planning.plan_run(wanted)
    mining.mine_candidates(run_id)
    batch_id = routing.prepare_batch(run_id, wanted)
    with open_stores() as stores:
        drafts = routing.drafts_of(stores, campaigns.get_run(stores.db, run_id=run_id))
    desk.send("p1", drafts[:1])  # and then it was killed
    reviewing.review("c", [draft.sample_id for draft in drafts[:2]], accept=False)
    assert routing.send_batch(batch_id).sent == 5
    assert [task.key for task in desk.tasks] == [draft.key for draft in drafts if draft is not drafts[1]]


def at_once(work: object) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as problem:  # noqa: BLE001  whatever a thread dies of
            failed.append(problem)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# Several annotators


def test_an_image_waits_until_enough_have_answered_and_the_majority_decides(world: Path, desk: Desk) -> None:
    send(plan(opinions=3))
    key, *others = asked()
    for by, name in (("ann", "bar"), ("bob", "square")):
        desk.answer(key, name, by=by)
    sync()
    assert state_of(key)[0] is RequestState.PENDING
    desk.answer(key, "bar", by="cat")
    sync()
    assert state_of(key) == (RequestState.LABELLED, "bar")
    desk.answer(others[0], "bar", by="ann")
    desk.answer(others[0], "square", by="ann")  # the same annotator again is no second opinion
    desk.answer(others[0], state=RequestState.SKIPPED, by="bob")
    sync()
    assert state_of(others[0])[0] is RequestState.PENDING


def test_a_disagreement_is_sent_for_another_opinion_up_to_a_limit(world: Path, desk: Desk) -> None:
    send(plan(opinions=2, most_opinions=3))
    contested, agreed, *_ = asked()
    for key, said in ((contested, ("bar", "square")), (agreed, ("bar", "bar"))):
        for by, name in zip(("ann", "bob"), said, strict=True):
            desk.answer(key, name, by=by)
    sync()
    assert [state_of(key)[0] for key in (contested, agreed)] == ["pending", "labelled"]
    assert [desk.task(key).overlap for key in (contested, agreed)] == [3, 1]
    desk.answer(contested, "square", by="cat")
    sync()
    assert state_of(contested) == (RequestState.LABELLED, "square")


def test_a_kill_after_asking_for_another_opinion_asks_again_and_waits(
    world: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(plan(opinions=2, most_opinions=3))
    key = asked()[0]
    for by, name in (("ann", "bar"), ("bob", "square")):
        desk.answer(key, name, by=by)
    with monkeypatch.context() as patch:
        patch.setattr(resolving, "_apply", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sync()
    assert desk.task(key).overlap == 3
    sync()
    found = next(request for request in requests() if request.key == key)
    assert (found.state, found.opinions) == (RequestState.PENDING, 3)


def test_of_a_tie_the_annotator_decides_who_errs_less(world: Path, desk: Desk) -> None:
    send(plan(budget=20, opinions=2))
    *clear, tied = asked()
    for number, key in enumerate(clear):
        truth = ("bar", "square")[number % 2]
        desk.answer(key, truth, by="cat")
        if number < 10:
            desk.answer(key, truth, by="ann")
        else:
            desk.answer(key, "bar", by="bob")  # bob says bar whatever he sees
    desk.answer(tied, "square", by="ann")
    desk.answer(tied, "bar", by="bob")
    sync()
    assert state_of(tied) == (RequestState.LABELLED, "square")


# Golden items


def answer_golden(desk: Desk, right: int) -> None:
    for number, request in enumerate(request for request in requests() if request.expected):
        wrong = "square" if request.expected == "bar" else "bar"
        desk.answer(request.key, request.expected if number < right else wrong)


def test_golden_items_look_like_the_others_and_are_never_learnt_from(world: Path, desk: Desk) -> None:
    wanted = plan(budget=20, golden_corpus="train", golden_share=0.3)
    batch_id = send(wanted)
    known = [request for request in requests() if request.expected]
    assert len(known) == 6
    assert {request.expected for request in known} == {"bar", "square"}
    assert routing.send_batch(batch_id).model_dump(include={"sent", "golden"}) == {"sent": 20, "golden": 6}
    drafts = [desk.task(request.key).draft.model_dump() for request in requests()]
    assert len({frozenset(draft) for draft in drafts}) == 1
    assert not any("golden" in str(draft["key"]) or "expected" in draft for draft in drafts)
    places = [request.position for request in known]
    assert places != sorted(places)[:6] or places[-1] > 6  # mixed in, not in front
    answer_golden(desk, right=6)
    for key in asked():
        desk.answer(key, "bar")
    (found,) = sync()
    assert (found.complete, found.golden, found.states) == (True, 6, {RequestState.LABELLED: 20})
    datasets.freeze_dataset(RetrainPlan(corpora=["train"], campaigns=["c"]))
    with open_stores() as stores:
        rows = labels.resolved_of_batches(stores.db, batches=labels.batches_of(stores.db, campaigns=["c"]))
        assert len(rows) == 20
        assert not {request.sample_id for request in known} & campaigns.sent_elsewhere(stores.db, campaign_id=0)


def test_a_batch_whose_golden_items_fail_is_quarantined_until_it_is_released(world: Path, desk: Desk) -> None:
    learning.fit(datasets.freeze_dataset(RetrainPlan(corpora=["train"])), RetrainPlan(model="m", corpora=["train"]))
    batch_id = send(plan(budget=20, golden_corpus="train", golden_share=0.3))
    for key in asked():
        desk.answer(key, "bar")
    answer_golden(desk, right=3)
    (found,) = sync()
    assert (found.state, found.complete) == (BatchState.QUARANTINED, False)
    assert found.reason.startswith("3 of 6 golden items were answered right (0.50 [")
    before = datasets.freeze_dataset(RetrainPlan(corpora=["train"]))
    assert datasets.freeze_dataset(RetrainPlan(corpora=["train"], campaigns=["c"])) == before
    assert planning.plans_to_continue([]) == []
    row = quality.set_state(batch_id, BatchState.OPEN, "the golden items were wrong")
    assert row["state"] == "complete"
    assert str(row["because"]).startswith("the golden items were wrong (before: 3 of 6 golden items")
    with pytest.raises(BadInput, match="only one that is quarantined or rejected can be released"):
        quality.set_state(batch_id, BatchState.OPEN, "again")
    assert datasets.freeze_dataset(RetrainPlan(corpora=["train"], campaigns=["c"])) != before
    sync()
    assert batch().state is BatchState.COMPLETE


def test_a_rejected_batch_is_closed_and_never_used(world: Path, desk: Desk) -> None:
    batch_id = send(plan())
    desk.answer(asked()[0], "bar")
    sync()
    quality.set_state(batch_id, BatchState.REJECTED, "the wrong people answered")
    with open_stores() as stores:
        run = campaigns.get_run(stores.db, run_id=batch().run_id)
        assert run.state is RunState.LABELLED
        assert not labels.resolved_of_batches(stores.db, batches=labels.batches_of(stores.db, campaigns=["c"]))
    desk.answer(asked()[1], "bar")
    sync()
    assert batch().state is BatchState.REJECTED


def test_golden_places_are_spread_by_chance_and_keep_every_request() -> None:
    others, known = [{"key": str(n)} for n in range(100)], [{"key": f"g{n}"} for n in range(20)]
    found = [request["key"] for request in golden.mixed(others, known, seed="s")]
    assert [key for key in found if not key.startswith("g")] == [str(n) for n in range(100)]
    assert sorted(key for key in found if key.startswith("g")) == sorted(f"g{n}" for n in range(20))
    places = [place for place, key in enumerate(found) if key.startswith("g")]
    assert max(places) > 90
    assert min(places) < 30
    assert found == [request["key"] for request in golden.mixed(others, known, seed="s")]


# Completion, links, review


def test_a_batch_is_complete_when_enough_is_answered_and_that_is_told_once(
    world: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[BatchState] = []
    monkeypatch.setattr(resolving, "tell", lambda one, _: told.append(one.state))
    send(plan(budget=10, enough=0.8))
    for key in asked()[:7]:
        desk.answer(key, "bar")
    assert [one.complete for one in sync()] == [False]
    assert labeling.announce() == 0
    desk.answer(asked()[7], "bar")
    assert [one.complete for one in sync()] == [True]
    assert [labeling.announce(), labeling.announce()] == [1, 0]
    assert told == [BatchState.COMPLETE]
    desk.answer(asked()[9], "bar")  # late answers count too
    assert [one.states[RequestState.LABELLED] for one in sync()] == [9]


def test_links_are_renewed_for_what_waits_before_they_expire(world: Path, desk: Desk) -> None:
    from models.base import utc_now

    desk.links_until = utc_now() + timedelta(days=30)
    send(plan())
    first, *others = asked()
    desk.answer(first, "bar")
    sync()
    sync()
    assert desk.renewed == []
    desk.links_until = utc_now() + timedelta(days=30 * 4)  # three quarters of their time have passed
    sync()
    assert sorted(desk.renewed) == sorted(others)
    sync()
    assert len(desk.renewed) == len(others)


def test_a_later_batch_does_not_put_off_the_renewal_of_an_earlier_ones_links(world: Path, desk: Desk) -> None:
    from models.base import utc_now

    desk.links_until = utc_now() + timedelta(days=5)
    send(plan(budget=10, enough=0.8))
    *answered, late, later = asked()
    for key in answered:
        desk.answer(key, "bar")
    assert [one.complete for one in sync()] == [True]
    desk.links_until = utc_now() + timedelta(days=30)  # 25 days later
    send(plan(budget=12, enough=0.8))
    sync()
    assert sorted(desk.renewed) == sorted({late, later, *asked()} - set(answered))


def test_an_engineer_reviews_and_only_what_was_accepted_is_sent(world: Path, desk: Desk, tmp_path: Path) -> None:
    from flows.campaign import run_campaign

    wanted = plan(accept="review")
    outcome = run_campaign.fn(wanted)
    assert (outcome.sent, outcome.status) == (None, "its round waits for review: dipnet campaign review c")
    assert run_campaign.fn(wanted).sent is None
    with pytest.raises(BadInput, match="nothing is yet; look with: dipnet campaign review c"):
        reviewing.send("c")
    sheet = tmp_path / "sheet.png"
    found = reviewing.review_run("c", accept=["1-2,4"], discard=["3"], rest="", sheet=sheet)
    assert (found.accepted, found.discarded, found.unsorted) == (3, 1, 2)
    assert sheet.read_bytes().startswith(b"\x89PNG")
    for accept, discard, says in (
        (["9"], [], "not within the ranks 1 to 6"),
        (["1"], ["1"], "both accepted and discarded"),
        (["abcdefg"], [], "names none of the candidates"),
    ):
        with pytest.raises(BadInput, match=says):
            reviewing.review_run("c", accept=accept, discard=discard, rest="", sheet=None)
    assert reviewing.send("c").sent == 3
    assert len(desk.tasks) == 3
    with pytest.raises(BadInput, match="has no run that is mined and not sent"):
        reviewing.review_run("c", accept=[], discard=[], rest="", sheet=None)


def test_quality_tells_annotators_classes_golden_items_and_cost(world: Path, desk: Desk) -> None:
    wanted = plan(budget=10, opinions=2, golden_corpus="train", golden_share=0.2, golden_least=2).model_copy(
        update={"stop": CampaignPlan.model_fields["stop"].default_factory().model_copy(update={"rate_per_hour": 30.0})}  # type: ignore[misc,union-attr]
    )
    send(wanted)
    for number, key in enumerate(asked()):
        desk.answer(key, "bar", by="ann")
        desk.answer(key, "square" if number == 0 else "bar", by="bob")
    for request in requests():
        if request.expected:
            desk.answer(request.key, request.expected, by="ann")
            desk.answer(request.key, "bar", by="bob")
    sync()
    (found,) = quality.of_campaign("c")
    assert (found.answers, found.contested, found.rejected, found.withdrawn) == (24, 2, 0, 0)
    assert found.alpha is not None
    assert found.alpha_low is not None
    assert found.golden is not None
    assert (found.golden.right, found.golden.of) == (3, 4)
    assert (found.minutes, found.cost) == (2.4, 1.2)  # 24 answers of 6 s at 30 an hour
    ann, bob = found.annotators
    assert (ann.golden and ann.golden.right, bob.golden and bob.golden.right) == (2, 1)
    assert [one.class_name for one in found.classes] == sorted(
        {one.class_name for one in requests() if not one.expected}
    )
