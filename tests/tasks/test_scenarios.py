"""Scenarios: the same name is the same samples; they may grow and never shrink."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from models.errors import BadInput, CorruptData
from models.learning import Scenario
from models.plans import IngestPlan
from models.retraining import RetrainPlan, SplitPolicy
from models.states import ScenarioKind
from storage import corpora, runs, tables
from storage.stores import open_stores
from tasks import datasets, embedding, ingesting, scenarios
from tests.tasks.conftest import prepare
from tests.tasks.test_loop import plan, run_to_labels

HELD = SplitPolicy(holdout=0.4)
Draw = Callable[..., Path]


def grow_corpus(world: Path, name: str, split: str) -> None:
    """One more dark bar."""
    folder = world / "images" / name
    (folder / "more.png").write_bytes((world / "images" / "pool" / "0001.png").read_bytes())
    with (folder / "metadata.csv").open("a") as handle:
        handle.write("more.png,bar,dark\n")
    ingesting.ingest(IngestPlan(corpus=name, prefix=str(folder), split=split, label_column="class_name"))  # type: ignore[arg-type]
    embedding.embed_shards(embedding.pending_shards(name, ""), "", 16)


def listed(name: str) -> tuple[Scenario, dict[str, str]]:
    with open_stores() as stores:
        scenario = runs.get_scenario(stores.db, name=name)
        table = tables.from_bytes(stores.objects.read(scenario.listing_key))
        stores.db.expunge(scenario)
    return scenario, dict(
        zip(table.column("sample_id").to_pylist(), table.column("class_name").to_pylist(), strict=True)
    )


def test_a_scenario_knows_its_definition_and_groups(world: Path) -> None:
    number = scenarios.freeze_scenario("must", ["held"], "tone = 'dark'", regression=True, group_by="tone")
    assert scenarios.freeze_scenario("must", ["held"], "tone = 'dark'", regression=True, group_by="tone") == number
    scenario, _ = listed("must")
    assert (scenario.kind, scenario.corpora, scenario.where) == (ScenarioKind.REGRESSION, ["held"], "tone = 'dark'")
    with open_stores() as stores:
        table = tables.from_bytes(stores.objects.read(scenario.listing_key))
    assert table.column("group").to_pylist() == ["dark"] * 12
    for wrong in (
        {"corpus_names": ["held"], "where": "tone = 'dark'", "group_by": "tone"},
        {"corpus_names": ["held", "dev"], "where": "tone = 'dark'", "group_by": "tone", "regression": True},
        {"corpus_names": ["held"], "where": "tone = 'dark'", "regression": True},
    ):
        with pytest.raises(BadInput, match="repeat its definition, or choose another name"):
            scenarios.freeze_scenario("must", **wrong)  # type: ignore[arg-type]
    for name in ("a/b", "a@2", "../up", ""):
        with pytest.raises(BadInput, match="cannot be called"):
            scenarios.freeze_scenario(name, ["held"])
    with pytest.raises(BadInput, match="'none' would be empty"):
        scenarios.freeze_scenario("none", ["held"], "tone = 'pink'")


def test_a_scenario_grows_into_its_next_version_and_the_one_before_stays(world: Path) -> None:
    scenarios.freeze_scenario("held", ["held"])
    assert scenarios.grow_scenario("held").model_dump() == {
        "scenario": "held@1", "samples": 24, "added": 0, "relabelled": 0,
    }  # fmt: skip
    before = listed("held")[1]
    grow_corpus(world, "held", "holdout")
    with open_stores() as stores:
        query = (
            "UPDATE label SET class_name = 'square' WHERE id = "
            "(SELECT min(id) FROM label WHERE source = :source AND class_name = 'bar')"
        )
        stores.db.connection().execute(text(query), {"source": "import:held"})
    assert scenarios.grow_scenario("held").model_dump() == {
        "scenario": "held@2", "samples": 25, "added": 1, "relabelled": 1,
    }  # fmt: skip
    after, rows = listed("held")
    assert (after.parent_id, set(rows) > set(before)) == (1, True)
    assert listed("held@1")[1] == before
    assert scenarios.grow_scenario("held").added == 0
    scenarios.freeze_scenario("held", ["held"])
    assert listed("held")[0].version == 2
    with pytest.raises(BadInput, match="only the newest version can grow, which is held@2"):
        scenarios.grow_scenario("held@1")


def test_a_scenario_that_would_lose_samples_does_not_grow(world: Path) -> None:
    scenarios.freeze_scenario("held", ["held"])
    grow_corpus(world, "held", "holdout")
    with open_stores() as stores:
        query = "DELETE FROM label WHERE id IN (SELECT id FROM label WHERE source = 'import:held' ORDER BY id LIMIT 3)"
        stores.db.connection().execute(text(query))
    with pytest.raises(BadInput, match="3 of the 24 samples of scenario 'held' no longer meet its definition"):
        scenarios.grow_scenario("held")
    assert listed("held")[0].version == 1


def test_an_issue_has_a_holdout_of_held_back_answers_where_no_corpus_holds_its_slice(world: Path) -> None:
    with open_stores() as stores:
        stores.db.connection().execute(
            text("UPDATE corpus SET split = (SELECT split FROM corpus WHERE name = 'dev') WHERE name = 'held'")
        )
    with pytest.raises(BadInput, match="there is no holdout corpus"):
        scenarios.issue_scenario("light-bar")
    run_to_labels(plan("c", budget=20))
    datasets.freeze_dataset(RetrainPlan(corpora=["train"], campaigns=["c"], splits=HELD))
    name = scenarios.issue_scenario("light-bar")
    first, rows = listed(name)
    assert (first.kind, first.corpora, first.issue_id) == (ScenarioKind.ISSUE, [], 1)
    assert 0 < len(rows) < 20
    assert scenarios.issue_scenario("light-bar") == name
    assert listed(name)[0].version == 1

    run_to_labels(plan("d", budget=30))
    datasets.freeze_dataset(RetrainPlan(corpora=["train"], campaigns=["c", "d"], splits=HELD))
    scenarios.issue_scenario("light-bar")
    second, more = listed(name)
    assert second.version == 2
    assert set(more) > set(rows)
    assert set(listed(scenarios.overall_scenario())[1]) >= set(more)


def test_the_overall_scenario_grows_with_what_holdout_there_is(world: Path, draw: Draw) -> None:
    name = scenarios.overall_scenario()
    first, rows = listed(name)
    assert scenarios.overall_scenario() == name
    assert listed(name)[0].version == first.version == 1
    prepare("held2", draw("held2", 30, seed=50), "holdout")
    scenarios.overall_scenario()
    second, more = listed(name)
    assert (second.version, second.samples, second.corpora) == (2, 54, ["held", "held2"])
    assert set(more) > set(rows)
    grow_corpus(world, "held", "holdout")
    scenarios.overall_scenario()
    assert (listed(name)[0].version, listed(name)[0].samples) == (3, 55)


def test_held_back_answers_stay_in_the_overall_scenario_when_a_holdout_corpus_is_added(world: Path, draw: Draw) -> None:
    with open_stores() as stores:
        stores.db.connection().execute(
            text("UPDATE corpus SET split = (SELECT split FROM corpus WHERE name = 'dev') WHERE name = 'held'")
        )
    run_to_labels(plan("c", budget=20))
    datasets.freeze_dataset(RetrainPlan(corpora=["train"], campaigns=["c"], splits=HELD))
    answers = listed(scenarios.overall_scenario())[1]
    prepare("held2", draw("held2", 30, seed=50), "holdout")
    for _ in range(2):
        scenario, rows = listed(scenarios.overall_scenario())
        assert (scenario.version, scenario.corpora) == (2, ["held2"])
        assert set(rows) > set(answers) and len(rows) == len(answers) + 30


def test_an_issues_holdout_is_its_slice_and_the_answers_that_are_not_outside_it(world: Path) -> None:
    scenarios.issue_scenario("light-bar")
    name = "issue-light-bar"
    slice_alone = listed(name)[1]
    assert len(slice_alone) == 12
    run_to_labels(plan("c", budget=40))
    datasets.freeze_dataset(RetrainPlan(corpora=["train"], campaigns=["c"], splits=HELD))
    scenarios.issue_scenario("light-bar")
    scenario, rows = listed(name)
    assert scenario.version == 2
    with open_stores() as stores:
        table = tables.from_bytes(stores.objects.read(scenario.listing_key))
        held = scenarios._held_answers(stores, None)
    assert set(table.column("tone").to_pylist()) == {"light"}  # the pool knows the column: dark ones are outside
    assert len(slice_alone) < len(rows) < len(slice_alone) + len(held)
    with open_stores() as stores:
        stores.db.connection().execute(text("UPDATE issue SET slice_where = 'tone = ''dark'''"))
    with pytest.raises(BadInput, match="choose another name for one of them"):
        scenarios.issue_scenario("light-bar")


def test_an_issue_without_a_condition_is_measured_on_what_is_held_back(world: Path) -> None:
    with open_stores() as stores:
        stores.db.connection().execute(text("UPDATE issue SET slice_where = ''"))
    run_to_labels(plan("c", budget=20))
    datasets.freeze_dataset(RetrainPlan(corpora=["train"], campaigns=["c"], splits=HELD))
    scenarios.issue_scenario("light-bar")
    scenario, rows = listed("issue-light-bar")
    with open_stores() as stores:
        assert set(rows) == {sample.id for _, sample in scenarios._held_answers(stores, None)}
    assert scenario.corpora == []


def test_a_scenario_from_before_stays_what_it_is(world: Path) -> None:
    number = scenarios.freeze_scenario("held", ["held"])
    with open_stores() as stores:
        stores.db.connection().execute(text("UPDATE scenario SET corpora = '[]', group_by = ''"))
    assert scenarios.freeze_scenario("held", ["held"]) == number
    with pytest.raises(BadInput, match=r"made before 0\.4 and cannot grow"):
        scenarios.grow_scenario("held")


def test_what_was_read_of_images_is_checked_before_a_scenario_rests_on_it(world: Path) -> None:
    with open_stores() as stores:
        corpus = corpora.get_corpus(stores.db, name="dev")
        (row,) = corpora.read_shards(stores.db, corpus_id=corpus.id or 0)
        data = stores.objects.read(row.read_key)
        stores.objects.write(row.read_key, data.replace(b"sample_id", b"sample_di"))
    with pytest.raises(CorruptData, match="is not what was written"):
        scenarios.freeze_scenario("dark", ["dev"], "tone = 'dark'")
