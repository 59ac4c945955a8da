"""Retraining: what is wrong costs no training, what is new is judged and may become champion, what is not is left alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlmodel import select

from flows.serving import NIGHTLY
from flows.training import retrain_and_evaluate
from models.campaign import Campaign, Issue
from models.errors import BadInput, DipnetError, Incompatible, NotFound
from models.learning import DatasetVersion, Gate, ModelVersion, Promotion, TrainingRun
from models.outcomes import Retrained
from models.retraining import FinetuneOptions, GatePolicy, RetrainPlan, SplitPolicy, TrainerPlan
from models.states import CampaignState, IssueState, Verdict
from storage.stores import open_stores
from tasks import promoting, scenarios, searching
from tests.tasks.conftest import prepare
from tests.tasks.test_loop import plan as campaign_plan
from tests.tasks.test_loop import rows_by_table, run_to_labels

Draw = Callable[..., Path]
WIDE = GatePolicy(overall_margin=0.9, class_margin=0.9, scenario_margin=0.9)  # so that 24 images can say "kept"


def train(model: str = "m", **more: object) -> Retrained:
    wanted = RetrainPlan(model=model, corpora=["train"], resamples=200, **more)  # type: ignore[arg-type]
    return retrain_and_evaluate.fn(wanted)


def models() -> list[str]:
    with open_stores() as stores:
        return [model.reference for model in stores.db.exec(select(ModelVersion)).all()]


def issue_state() -> IssueState:
    with open_stores() as stores:
        return stores.db.exec(select(Issue)).one().state


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"compare_with": "nobody"}, NotFound, "there is no model 'nobody'"),
        ({"compare_with": "m@7"}, NotFound, "there is no model 'm@7'"),
        ({"compare_with": "champion"}, NotFound, "no model is champion yet"),
        ({"issue": "nothing"}, NotFound, "there is no issue 'nothing'"),
        ({"issue": "broken"}, BadInput, "cannot be used"),
        ({"issue": "nowhere"}, BadInput, "would be empty"),
        ({"issue": "other-class"}, BadInput, "no sample of scenario 'issue-other-class' is a 'ring'"),
        ({"scenarios": ["nothing"]}, NotFound, "there is no scenario 'nothing'"),
        ({"campaigns": ["nothing"]}, NotFound, "there is no campaign 'nothing'"),
        ({"corpora": ["nothing"]}, NotFound, "there is no corpus 'nothing'"),
        ({"corpora": ["held"]}, BadInput, "is not for training"),
        ({"encoder": "other"}, NotFound, "no vectors of encoder 'other'"),
        ({"model": "champion"}, BadInput, "has a meaning of its own"),
        (
            {"trainer": TrainerPlan(name="finetune", finetune=FinetuneOptions(backbone="resnet19"))},
            BadInput,
            "there is no torchvision network 'resnet19'",
        ),
    ],
)
def test_what_is_wrong_with_a_plan_is_said_before_anything_is_fitted(
    world: Path, change: dict[str, object], error: type[DipnetError], says: str
) -> None:
    with open_stores() as stores:  # as they may be in databases from before issues were checked
        stores.db.add(Issue(name="broken", class_name="bar", slice_where="tone ="))
        stores.db.add(Issue(name="nowhere", class_name="bar", slice_where="tone = 'grey'"))
        stores.db.add(Issue(name="other-class", class_name="ring"))
    with pytest.raises(error, match=says):
        retrain_and_evaluate.fn(RetrainPlan(model="m", corpora=["train"]).model_copy(update=change))
    assert models() == []
    assert rows_by_table()["trainingrun"] == 0


def test_a_scenario_that_the_encoder_has_not_seen_stops_the_fit(world: Path, draw: Draw) -> None:
    from models.plans import IngestPlan
    from tasks import embedding, ingesting

    train()
    fresh = draw("more", 8, seed=11)
    ingesting.ingest(IngestPlan(corpus="more", prefix=str(fresh), split="holdout", label_column="class_name"))
    embedding.embed_shards(embedding.pending_shards("more", ""), "", 16)
    scenarios.freeze_scenario("more", ["more"])
    with open_stores() as stores:
        stores.db.connection().exec_driver_sql(
            "DELETE FROM embeddedshard WHERE id = (SELECT max(id) FROM embeddedshard)"
        )
    with pytest.raises(Incompatible, match=r"images of scenario '(more|all-holdout)' have no vectors"):
        train("n", scenarios=["more"])
    assert models() == ["m@1"]


def test_the_first_model_is_champion_and_is_compared_with_nothing(world: Path) -> None:
    first = train()
    assert (first.model, first.compared_with, first.champion, first.promotion) == ("m@1", "", "m@1", "the first")
    assert set(first.evaluations) >= {"dev", "held"}
    assert first.gates == [] and first.unchanged == ""


def test_the_next_is_compared_with_the_champion_and_twice_changes_nothing(world: Path) -> None:
    train()
    run_to_labels(campaign_plan(budget=20))
    first = train(campaigns=["*"], issue="*", gate=WIDE)
    assert first.compared_with == "m@1"
    assert [one.issue for one in first.gates] == ["light-bar"]
    assert set(first.evaluations) >= {"dev", "held", "all-holdout", "issue-light-bar"}
    rows = rows_by_table()
    again = train(campaigns=["*"], issue="*", gate=WIDE)
    assert again.unchanged == "nothing changed since m@2"
    assert rows_by_table() == rows
    ignored = {"unchanged", "fitted", "promotion"}
    assert again.model_dump(exclude=ignored) == first.model_dump(exclude=ignored)


def test_labels_that_the_champion_knows_are_about_no_issue(world: Path) -> None:
    run_to_labels(campaign_plan(budget=20))
    train(campaigns=["*"], issue="*")
    assert [one.issue for one in train(campaigns=["*"], issue="*", seed=1, model="n").gates] == [""]


def test_a_model_is_never_compared_with_itself(world: Path) -> None:
    train()
    assert train(compare_with="m").comparisons == []
    assert train(compare_with="champion").comparisons == []
    other = train(compare_with="m", campaigns=["*"], seed=3)
    assert other.compared_with in ("", "m@1")
    assert all(one.before != one.after for one in other.comparisons)


def test_a_newest_model_that_is_named_is_the_same_one_when_it_is_run_again(world: Path) -> None:
    train()
    run_to_labels(campaign_plan(budget=20))
    first = train(compare_with="m", campaigns=["c"])
    again = train(compare_with="m", campaigns=["c"])
    assert (first.compared_with, again.compared_with) == ("m@1", "m@1")
    assert again.gates == first.gates


def test_none_compares_with_nothing_and_promotes_nothing(world: Path) -> None:
    train()
    run_to_labels(campaign_plan(budget=20))
    found = train(campaigns=["c"], compare_with="none")
    assert found.comparisons == [] and found.gates == []
    assert (found.champion, found.promotion) == ("m@1", "it was compared with nothing")


def test_an_issue_that_cannot_be_judged_is_left_out_by_name_and_the_change_is_judged_as_a_whole(world: Path) -> None:
    train()
    searching.new_issue("ring", class_name="ring", where="", description="")
    searching.add_exemplars("ring", [world / "images" / "dev" / "0003.png"], positive=True)
    run_to_labels(campaign_plan(budget=20).model_copy(update={"issue": "ring"}))
    found = train(campaigns=["*"], issue="*")
    assert list(found.left_out) == ["ring"]
    assert [one.issue for one in found.gates] == [""]


def judged_as(verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the statistics would say, with findings of the real thing: 24 drawings cannot say it."""
    from tasks.compute import gate

    real = gate.judge
    monkeypatch.setattr(gate, "judge", lambda *a, **k: real(*a, **k)._replace(verdict=verdict))


@pytest.mark.parametrize(
    ("verdict", "state", "campaign", "champion"),
    [
        ("pass", IssueState.RESOLVED, CampaignState.STOPPED, "m@2"),
        ("fail", IssueState.COLLECTING, CampaignState.ACTIVE, "m@1"),
        ("inconclusive", IssueState.COLLECTING, CampaignState.ACTIVE, "m@1"),
    ],
)
def test_issue_campaigns_and_champion_follow_the_verdict_once(
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    verdict: str,
    state: IssueState,
    campaign: CampaignState,
    champion: str,
) -> None:
    train()
    run_to_labels(campaign_plan(budget=20))
    judged_as(verdict, monkeypatch)
    for _ in range(2):
        found = train(campaigns=["c"], issue="light-bar")
        assert (issue_state(), found.champion) == (state, champion)
        with open_stores() as stores:
            one = stores.db.exec(select(Campaign)).one()
            assert one.state is campaign
            assert one.stopped_because == ("m@2 resolves 'light-bar' (gate 1)" if verdict == "pass" else "")
            assert len(stores.db.exec(select(Gate)).all()) == 1
    assert (verdict == "pass") == found.promotion.endswith("champion already")


def judged_by_class(better: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Issues about these classes are better beyond doubt, those about others worse, and nothing else is changed."""
    from tasks.compute import gate

    real = gate.judge

    def told(claim: gate.Claim) -> gate.Claim:
        if claim.role != "target":
            return replace(claim, delta=0.0, low=-0.001, high=0.001)
        sign = 1 if claim.name in better else -1
        return replace(claim, delta=0.3 * sign, low=0.3 * sign - 0.1, high=0.3 * sign + 0.1)

    monkeypatch.setattr(gate, "judge", lambda claims, **more: real([told(claim) for claim in claims], **more))


def issues() -> dict[str, tuple[IssueState, frozenset[CampaignState]]]:
    with open_stores() as stores:
        known = stores.db.exec(select(Campaign)).all()
        return {
            issue.name: (issue.state, frozenset(one.state for one in known if one.issue_id == issue.id))
            for issue in stores.db.exec(select(Issue)).all()
        }


def two_issues(world: Path) -> None:
    searching.new_issue("dark-square", class_name="square", where="tone = 'dark'", description="")
    searching.add_exemplars("dark-square", [world / "images" / "dev" / "0000.png"], positive=True)
    for name, issue in (("c", "light-bar"), ("d", "dark-square")):
        run_to_labels(campaign_plan(name, budget=8).model_copy(update={"issue": issue}))


def test_an_issue_that_passes_is_not_resolved_by_a_model_that_fails_another(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train()
    two_issues(world)
    better = {"bar"}
    judged_by_class(better, monkeypatch)
    for _ in range(2):
        found = train(campaigns=["*"], issue="*")
        assert {one.issue: one.verdict for one in found.gates} == {
            "light-bar": Verdict.PASS,
            "dark-square": Verdict.FAIL,
        }
        assert found.champion == "m@1"
        assert {name: campaign for name, (_, campaign) in issues().items()} == {
            "light-bar": {CampaignState.ACTIVE},
            "dark-square": {CampaignState.ACTIVE},
        }
        assert issues()["light-bar"][0] is not IssueState.RESOLVED
        assert issues()["dark-square"][0] is IssueState.COLLECTING
    better.add("square")
    found = train("n", campaigns=["*"], issue="*", seed=1)
    assert found.champion == "n@1"
    assert set(issues().values()) == {(IssueState.RESOLVED, frozenset({CampaignState.STOPPED}))}


def test_a_run_that_was_killed_before_its_verdicts_moved_anything_settles_when_run_again(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import judging

    train()
    run_to_labels(campaign_plan(budget=20))
    judged_as("pass", monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(judging, "settle", lambda gates: (_ for _ in ()).throw(KeyboardInterrupt))
        train(campaigns=["c"], issue="light-bar")
    assert issues() == {"light-bar": (IssueState.LABELLING, {CampaignState.ACTIVE})}
    found = train(campaigns=["c"], issue="light-bar")
    assert issues() == {"light-bar": (IssueState.RESOLVED, {CampaignState.STOPPED})}
    assert (found.champion, found.unchanged) == ("m@2", "")
    assert train(campaigns=["c"], issue="light-bar").unchanged == "nothing changed since m@2"


def test_a_resolved_issue_that_a_later_model_fails_is_looked_at_again(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train()
    run_to_labels(campaign_plan(budget=20))
    judged_as("pass", monkeypatch)
    train(campaigns=["c"], issue="light-bar")
    judged_as("inconclusive", monkeypatch)
    train("n", campaigns=["c"], issue="light-bar", seed=1)
    assert issue_state() is IssueState.RESOLVED
    judged_as("fail", monkeypatch)
    train("o", issue="light-bar", seed=2)
    train("o", issue="light-bar", seed=2)
    assert issue_state() is IssueState.TRIAGE


def test_who_beat_an_old_model_is_not_champion_over_one_it_never_met(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train()
    judged_as("pass", monkeypatch)
    assert train("second", seed=1).champion == "second@1"
    found = train("third", seed=2, compare_with="m@1")
    assert (found.champion, found.gates[0].verdict) == ("second@1", Verdict.PASS)
    assert found.promotion == "it was compared with m@1, and second@1 is champion"


def test_promotions_are_undone_one_by_one_and_stay_so(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train()
    judged_as("pass", monkeypatch)
    for number, name in enumerate(("second", "third"), 1):
        train(name, seed=number)
    assert [promoting.undo().champion for _ in range(2)] == ["second@1", "m@1"]
    assert train("third", seed=2).champion == "m@1"  # what a person undid, no schedule does again
    assert promoting.promote("third").champion == "third@1"
    assert promoting.promote("third").changed is False
    assert promoting.undo().champion == "m@1"
    assert promoting.undo().champion == ""
    with pytest.raises(BadInput, match="nothing to undo"):
        promoting.undo()
    with open_stores() as stores:
        assert len(stores.db.exec(select(Promotion)).all()) == 4


def test_a_gate_policy_may_keep_the_champion(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train()
    judged_as("pass", monkeypatch)
    found = train("n", seed=1, gate=GatePolicy(promote=False))
    assert (found.champion, found.promotion) == ("m@1", "the plan says not to promote")
    with open_stores() as stores:
        stores.db.delete(stores.db.exec(select(Promotion)).one())
    assert train("n", seed=1, gate=GatePolicy(promote=False)).champion == ""


@pytest.mark.parametrize(("verdict", "champion"), [("pass", "n@1"), ("fail", ""), ("inconclusive", "n@1")])
def test_where_there_is_no_champion_a_model_whose_gate_fails_does_not_become_it(
    world: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, champion: str
) -> None:
    train()
    promoting.undo()
    judged_as(verdict, monkeypatch)
    found = train("n", seed=1, compare_with="m@1")
    assert (found.champion, found.promotion) == (champion, "the first" if champion else "gate 1 says fail")
    assert train("n", seed=1, compare_with="m@1").champion == champion


def test_development_data_makes_no_claim_but_a_regression_suite_does(world: Path) -> None:
    from models.states import ScenarioKind
    from storage import runs

    train()
    scenarios.freeze_scenario("light", ["held"], "tone = 'light'")
    scenarios.freeze_scenario("dark", ["dev"], "tone = 'dark'")
    found = train("n", seed=1)
    with open_stores() as stores:
        names = {(row["role"], row["name"]) for row in stores.db.get_one(Gate, found.gates[0].gate_id).findings}
        assert names == {("overall", ""), ("class", "bar"), ("class", "square"), ("scenario", "light")}
        assert {"dev", "dark"} <= {compared.scenario for compared in found.comparisons}
        scenario = runs.get_scenario(stores.db, name="dark")
        scenario.kind = ScenarioKind.REGRESSION
        stores.db.add(scenario)
    found = train("o", seed=2)
    with open_stores() as stores:
        names = {(row["role"], row["name"]) for row in stores.db.get_one(Gate, found.gates[0].gate_id).findings}
    assert ("scenario", "dark") in names and ("scenario", "dev") not in names


def test_a_scenario_from_before_0_4_is_shown_but_makes_no_claim_and_is_no_issues_own(world: Path) -> None:
    from storage import runs

    train()
    scenarios.freeze_scenario("old", ["held"])
    with open_stores() as stores:  # as it is after the upgrade
        scenario, issue = runs.get_scenario(stores.db, name="old"), stores.db.exec(select(Issue)).one()
        scenario.corpora, scenario.group_by, scenario.issue_id = [], "", issue.id
        stores.db.add(scenario)
    train("n", seed=1, scenarios=["old"])  # compared there first
    scenarios.freeze_scenario("dark", ["held"], "tone = 'dark'")
    with open_stores() as stores:
        scenario = runs.get_scenario(stores.db, name="dark")
        scenario.corpora, scenario.group_by = [], ""
        stores.db.add(scenario)
    found = train("n", seed=1, issue="light-bar")
    assert {"old", "dark"} <= {compared.scenario for compared in found.comparisons}
    with open_stores() as stores:
        findings = stores.db.get_one(Gate, found.gates[0].gate_id).findings
    assert [row["samples"] for row in findings if row["role"] == "target"] == [12]
    assert [row["name"] for row in findings if row["role"] == "scenario"] == []


def test_metrics_from_before_0_4_are_measured_anew(world: Path) -> None:
    from models.learning import Evaluation
    from tasks import evaluating

    first = train()
    with open_stores() as stores:
        row = stores.db.get_one(Evaluation, first.evaluations["held"])
        whole = row.metrics
        row.metrics = {"accuracy": 0.5}
        stores.db.add(row)
    assert evaluating.evaluate("m", "held") == first.evaluations["held"]
    with open_stores() as stores:
        assert stores.db.get_one(Evaluation, first.evaluations["held"]).metrics == whole


def test_what_is_trained_on_is_known_by_its_versions(world: Path) -> None:
    train()
    run_to_labels(campaign_plan(budget=20))
    assert train(campaigns=["c"]).model == "m@2"
    assert train().model == "m@1"
    with open_stores() as stores:
        assert len(stores.db.exec(select(TrainingRun)).all()) == 2
        assert len(stores.db.exec(select(DatasetVersion)).all()) == 2
    prepare("again", world / "images" / "train", "train")  # the same images under another name
    assert retrain_and_evaluate.fn(RetrainPlan(model="m", resamples=200)).model == "m@1"


def test_two_that_pass_at_once_are_champion_one_after_the_other(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    train()
    judged_as("pass", monkeypatch)
    rivals = [train(name, seed=number, gate=GatePolicy(promote=False)) for number, name in enumerate("ab", 1)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda one: promoting.promote_judged(one.model, one.gates), rivals))
    assert sorted(one.changed for one in found) == [False, True]  # the other one has not met the new champion
    winner = next(one.champion for one in found if one.changed)
    assert {one.champion for one in found} == {winner}


def test_the_nightly_run_goes_on_where_somebody_held_answers_back(world: Path) -> None:
    run_to_labels(campaign_plan(budget=20))
    before = train(campaigns=["c"], splits=SplitPolicy(holdout=0.5))
    found = retrain_and_evaluate.fn(NIGHTLY)
    with open_stores() as stores:
        version = stores.db.get_one(DatasetVersion, found.fitted.dataset_id)
        assert version.splits["holdout"] > 24
    assert found.fitted.dataset_id == before.fitted.dataset_id
