"""A model's report stands alone, says the same twice, and shows what there is: nothing to compare, images that are gone."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sqlmodel import select

from flows.training import retrain_and_evaluate
from models.labeling import Label
from models.learning import Evaluation
from models.plans import CampaignPlan, IngestPlan, SelectionPolicy
from models.retraining import RetrainPlan, UpliftPlan
from storage.stores import open_stores
from tasks import embedding, ingesting, labeling, mining, planning, reporting, routing, uplift

HOSTILE = "<img src=x onerror=alert(1)>$"


class Tags(HTMLParser):
    """The tags of a page, and their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)


def run_arm(name: str, strategy: str) -> None:
    policy = SelectionPolicy(
        budget=20, strategy=strategy, near_duplicate_cosine=1.0, leak_cosine=1.0, across_campaigns=False
    )  # type: ignore[arg-type]
    wanted = CampaignPlan(campaign=name, issue="light-bar", corpora=["pool"], policy=policy)
    run_id = planning.plan_run(wanted)
    mining.mine_candidates(run_id)
    routing.send_batch(routing.prepare_batch(run_id, wanted))
    for project_id in labeling.projects_to_sync([name]):
        labeling.sync_project(project_id)


def retrain(model: str, **more: object) -> None:
    given = {"model": model, "corpora": ["train"], "resamples": 200, "compare_with": "none"} | more
    retrain_and_evaluate.fn(RetrainPlan.model_validate(given))


def swap_train_labels() -> None:
    """Squares are called bars and bars squares, so that a model gets everything wrong."""
    with open_stores() as stores:
        for label in stores.db.exec(select(Label).where(Label.source == "import:train")).all():
            label.class_name = "bar" if label.class_name == "square" else "square"
            stores.db.add(label)


def written(house: Path, reference: str) -> tuple[str, dict[str, object]]:
    folder = house / "reports" / reference
    return (folder / "report.html").read_text(), json.loads((folder / "report.json").read_text())


def test_the_report_of_a_change_shows_all_of_its_evidence_and_twice_the_same(world: Path, house: Path) -> None:
    shutil.rmtree(house / "reports", ignore_errors=True)
    run_arm("r", "random")
    run_arm("c", "probe")
    retrain("before")
    retrain("after", campaigns=["c"], compare_with="before", issue="light-bar")
    uplift.measure(UpliftPlan(campaign="c", control="r", corpora=["train"], seeds=2))
    place = reporting.write_model_report("after")
    assert place.endswith("reports/after@1/report.html")
    html, record = written(house, "after@1")
    assert (record["model"], record["before"]) == ("after@1", "before@1")
    assert record["gates"][0]["issue"] == "light-bar"  # type: ignore[index]
    assert record["main"] == "all-holdout@1"
    for heading in (
        "Scenarios",
        "Class by class",
        "Confusion",
        "Calibration",
        "Images that changed",
        "Was it the campaign",
    ):
        assert f"<h2>{heading}" in html
    assert html.count("<svg ") == 1 + 3 + 1 + 1  # forest, three tables, calibration, seeds
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", html)  # it stands alone
    before = {file: file.read_bytes() for file in (house / "reports").rglob("*") if file.is_file()}
    reporting.write_model_report("after")
    assert {file: file.read_bytes() for file in (house / "reports").rglob("*") if file.is_file()} == before


def test_a_first_model_has_a_report_without_a_comparison(world: Path, house: Path) -> None:
    retrain("first")
    reporting.write_model_report("first")
    html, record = written(house, "first@1")
    assert record["before"] == "" and record["gates"] == []
    assert "compared with nothing" in html and "No campaign" in html
    assert "Images that changed" not in html
    assert html.count("<svg ") == 2  # confusion, calibration


def test_a_model_without_probabilities_has_no_calibration(world: Path, house: Path) -> None:
    retrain("first")
    with open_stores() as stores:
        for evaluation in stores.db.exec(select(Evaluation)).all():
            missing = {"ece": None, "brier": None, "log_loss": None, "calibration": []}
            classes = {name: {**row, "average_precision": None} for name, row in evaluation.metrics["classes"].items()}
            evaluation.metrics = {**evaluation.metrics, **missing, "classes": classes}
            stores.db.add(evaluation)
    reporting.write_model_report("first")
    html, _ = written(house, "first@1")
    assert "<h2>Calibration" not in html and "<h2>Confusion" in html


def test_images_that_are_gone_leave_a_gap_and_no_error(world: Path, house: Path) -> None:
    swap_train_labels()
    retrain("before")
    swap_train_labels()
    retrain("after", compare_with="before")
    for file in (world / "images").rglob("*.png"):
        file.unlink()
    reporting.write_model_report("after")
    html, record = written(house, "after@1")
    changed = sum(found["count"] for found in record["changes"].values())  # type: ignore[attr-defined]
    assert changed == 48  # all that there is
    assert html.count('class="gone muted"') == reporting.MOST_IMAGES == 24
    assert "(24 shown)" in html
    assert "<img " not in html


@pytest.mark.parametrize("name", [HOSTILE])
def test_hostile_class_names_stay_text(
    tmp_path: Path, house: Path, drawn_images: Callable[..., Path], name: str
) -> None:
    for seed, (corpus, split) in enumerate((("train", "train"), ("held", "holdout"))):
        folder = drawn_images(tmp_path / corpus, 24, seed=seed)
        table = folder / "metadata.csv"
        table.write_text(table.read_text().replace(",bar,", f',"{name}",'))
        plan = IngestPlan(corpus=corpus, prefix=str(folder), split=split, label_column="class_name")  # type: ignore[arg-type]
        ingesting.ingest(plan)
        embedding.embed_shards(embedding.pending_shards(corpus, ""), "", 16)
    retrain("m")
    reporting.write_model_report("m")
    html, _ = written(house, "m@1")
    tags = Tags(html).found
    assert not [tag for tag, attributes in tags if tag == "script" or any(key.startswith("on") for key in attributes)]
    assert not [attributes for tag, attributes in tags if tag == "img"]
    assert "&lt;img src=x" in html
