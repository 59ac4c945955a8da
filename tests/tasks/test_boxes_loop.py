"""The loop over boxes: each is mined, shown, labelled, trained on and evaluated as its own pixels, and none leaks."""

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from sqlmodel import select

from models.corpus import Sample
from models.elements import Box, Place, element_id, place_of
from models.labeling import Label, LabelRequest
from models.learning import DatasetVersion
from models.plans import IngestPlan
from models.retraining import GatePolicy, PredictionsPlan, RetrainPlan, SplitPolicy
from models.settings import load_settings
from models.states import CandidateState
from storage import campaigns, corpora
from storage.stores import open_stores
from tasks import (
    datasets,
    embedding,
    evaluating,
    exporting,
    importing,
    ingesting,
    judging,
    learning,
    previewing,
    scenarios,
    searching,
    showing,
    tracing,
    views,
)
from tasks.compute.images import fingerprint
from tests.tasks.test_loop import plan, run_to_labels

Draw = Callable[..., Path]
TILE = 28  # pixels; a board has two by two
CORNERS = ((0, 0), (TILE, 0), (0, TILE), (TILE, TILE))


def draw_boards(folder: Path, tiles: Path) -> list[str]:
    """Boards of four drawings each, and boxes.csv with a row a drawing; the class of each box, in that order."""
    folder.mkdir(parents=True)
    rows = [line.split(",") for line in (tiles / "metadata.csv").read_text().splitlines()[1:]]
    lines, classes = ["file_name,x,y,width,height,class_name,tone"], []
    for first in range(0, len(rows), 4):
        board, name = Image.new("L", (2 * TILE, 2 * TILE)), f"{first // 4:03d}.png"
        for (file, shape, tone), corner in zip(rows[first : first + 4], CORNERS, strict=True):
            with Image.open(tiles / file) as tile:
                board.paste(tile, corner)
            lines.append(f"{name},{corner[0]},{corner[1]},{TILE},{TILE},{shape},{tone}")
            classes.append(shape)
        board.save(folder / name)
    (folder.parent / f"{folder.name}.csv").write_text("\n".join(lines) + "\n")
    return classes


def add(name: str, folder: Path, split: str = "none") -> None:
    """Ingest and embed a folder of boards."""
    label = "" if split == "none" else "class_name"
    boxes = str(folder.parent / f"{folder.name}.csv")
    wanted = {"corpus": name, "prefix": str(folder), "boxes": boxes, "split": split, "label_column": label}
    ingesting.ingest(IngestPlan.model_validate(wanted))
    embedding.embed_shards(embedding.pending_shards(name, ""), "", 16)


@pytest.fixture
def boards(tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Corpora of boxes, an issue shown by boxes, the truth about the pool; one held board lies in train and pool too."""
    home, truth = tmp_path / "boards", ["sample_id,class_name"]
    sizes = {"train": (40, "train"), "dev": (24, "development"), "held": (24, "holdout"), "pool": (60, "none")}
    classes = {
        name: draw_boards(home / name, draw(f"tiles-{name}", count, seed=seed))
        for seed, (name, (count, _)) in enumerate(sizes.items())
    }
    copy = (home / "held" / "003.png").read_bytes()
    for edge, name in enumerate(("train", "pool"), 1):  # cut a little otherwise, so that no box is the same
        (home / name / "999.png").write_bytes(copy)
        with (home / f"{name}.csv").open("a") as handle:
            side = TILE - 2 * edge
            handle.writelines(f"999.png,{x + edge},{y + edge},{side},{side},bar,light\n" for x, y in CORNERS)
    for name, (_, split) in sizes.items():
        add(name, home / name, split)
    for number, shape in enumerate(classes["pool"]):
        image_id = fingerprint((home / "pool" / f"{number // 4:03d}.png").read_bytes())
        truth.append(f"{element_id(image_id, Box(*CORNERS[number % 4], TILE, TILE))},{shape}")
    (tmp_path / "truth.csv").write_text("\n".join(truth))
    monkeypatch.setenv("DIPNET_ORACLE_TRUTH", str(tmp_path / "truth.csv"))
    searching.new_issue("light-bar", class_name="bar", where="tone = 'light'", description="")
    light_bars = [
        Path(Place(str(home / "dev" / f"{n:03d}.png"), box=Box(TILE, TILE, TILE, TILE)).uri) for n in range(3)
    ]
    searching.add_exemplars("light-bar", light_bars, positive=True)
    return home


def test_a_box_is_an_element_of_its_own_and_knows_its_image(boards: Path) -> None:
    with open_stores() as stores:
        train = corpora.get_corpus(stores.db, name="train")
        assert [shard.images for shard in corpora.shards_of(stores.db, corpus_id=train.id or 0)] == [44]
        samples = stores.db.exec(select(Sample)).all()
        for sample in samples:
            place = place_of(sample.uri)
            assert place.box
            assert sample.image_id == fingerprint(Path(place.object_uri).read_bytes())
            assert sample.id == element_id(sample.image_id, place.box)


def test_the_loop_closes_over_boxes_and_none_of_an_evaluation_image_is_learnt_from(
    boards: Path, tmp_path: Path
) -> None:
    run_id = run_to_labels(plan(budget=64))
    with open_stores() as stores:
        assert campaigns.count_states(stores.db, run_id=run_id) == {CandidateState.LABELLED: 60}
        run = campaigns.get_run(stores.db, run_id=run_id)
        chosen = campaigns.candidates_of(stores.db, run_id=run_id)
        labelled = {one.sample_id for one in stores.db.exec(select(Label)).all()}
        assert {one.sample_id for one in chosen} <= labelled
        samples = corpora.known_samples(stores.db, ids=[one.sample_id for one in chosen])
        assert {Path(place_of(sample.uri).object_uri).name for sample in samples.values()} & {"999.png"} == set()
        assert run.excluded.keys() == {"of an image in evaluation data"}
        previewing.sheet_of_run(stores, chosen, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").convert("RGB").size[0] > 0

    for name, added in (("before", []), ("after", ["c"])):
        wanted = RetrainPlan(model=name, corpora=["train"], campaigns=added)
        learning.fit(datasets.freeze_dataset(wanted), wanted)
        for scenario in (scenarios.issue_scenario("light-bar"), scenarios.overall_scenario()):
            evaluating.evaluate(name, scenario)
    compared = [evaluating.compare("before", "after", s, 200, 0) for s in ("issue-light-bar", "all-holdout")]
    judging.settle([judging.judge([one.comparison_id for one in compared], "light-bar", GatePolicy())])
    with open_stores() as stores:
        for version in stores.db.exec(select(DatasetVersion)).all():
            assert version.excluded["related to evaluation data"] == 4
            assert version.splits["holdout"] == 24
            rows = datasets.read_listing(stores, version).to_pylist()
            assert not [row for row in rows if "999.png" in row["uri"]]
            _of_one_image_go_together(rows)
    told = tracing.sample_record(chosen[0].sample_id)
    assert told["box_of"] == samples[chosen[0].sample_id].image_id
    assert (told["image"], len(told["requests"])) == (samples[chosen[0].sample_id].uri, 1)


def _of_one_image_go_together(rows: list[dict[str, str]]) -> None:
    """Boxes of one image are one group, in one split."""
    found: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        found.setdefault(place_of(row["uri"]).object_uri, set()).add((row["group"], row["split"]))
    assert all(len(some) == 1 for some in found.values())


def test_annotators_see_the_box_and_an_export_holds_it(boards: Path, tmp_path: Path) -> None:
    run_to_labels(plan(budget=20))
    with open_stores() as stores:
        requests = stores.db.exec(select(LabelRequest, Sample).join(Sample)).all()
    for request, sample in requests[:5]:
        shown = Image.open(io.BytesIO(showing.image_of_request(load_settings(), request.key).data)).convert("RGB")
        place = place_of(sample.uri)
        assert place.box is not None
        x, y, wide, high = place.box
        board = Image.open(place.object_uri).convert("RGB")
        assert shown.tobytes() == board.crop((x, y, x + wide, y + high)).tobytes()
    dataset_id = datasets.freeze_dataset(RetrainPlan(corpora=["train"], campaigns=["c"]))
    exporting.export_dataset(dataset_id, tmp_path / "out", images="copy")
    rows = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    assert len({row["file"] for row in rows}) == len(rows) == 40 + 24 + 24 + 20
    for row in rows:
        with Image.open(tmp_path / "out" / row["file"]) as cut:
            assert cut.size == (TILE, TILE)


def test_boxes_of_one_image_are_held_back_together_and_stay_so(boards: Path) -> None:
    held = SplitPolicy(development=0.2, holdout=0.3, group_by="")
    run_to_labels(plan("c", budget=15))
    first = datasets.freeze_dataset(RetrainPlan(corpora=["train"], campaigns=["c"], splits=held))
    run_to_labels(plan("d", budget=30))
    second = datasets.freeze_dataset(RetrainPlan(corpora=["train"], campaigns=["c", "d"], splits=held))
    with open_stores() as stores:
        before, after = (
            datasets.read_listing(stores, stores.db.get_one(DatasetVersion, number)).to_pylist()
            for number in (first, second)
        )
    for rows in (before, after):
        _of_one_image_go_together(rows)
    assert {row["split"] for row in after if "/pool/" in row["uri"]} == {"train", "development", "holdout"}
    now = {row["sample_id"]: row["split"] for row in after}
    assert all(now[row["sample_id"]] == row["split"] for row in before)


def test_predictions_name_boxes_by_file_and_place(boards: Path) -> None:
    scenarios.freeze_scenario("held", ["held"])
    lines = (boards / "held.csv").read_text().splitlines()[1:]
    rows = [line.split(",") for line in lines]
    told = ["key,class_name", *(f'"{file}#xywh={x},{y},{w},{h}",{shape}' for file, x, y, w, h, shape, _ in rows)]
    (boards / "answers.csv").write_text("\n".join(told))
    wanted = PredictionsPlan(file=str(boards / "answers.csv"), model="theirs", scenarios=["held"])
    assert importing.import_predictions(wanted).stored
    assert evaluating.evaluate("theirs", "held") > 0


def test_the_quarantine_names_boxes_outside_of_their_image(boards: Path) -> None:
    folder = boards / "odd"
    folder.mkdir()
    (folder / "0.png").write_bytes((boards / "dev" / "000.png").read_bytes())
    (boards / "odd.csv").write_text("file_name,x,y,width,height\n0.png,0,0,28,28\n0.png,40,40,50,50\n0.png,56,0,9,9\n")
    add("odd", folder)
    assert [row["reason"] for row in views.quarantine_rows("odd")] == ["box outside the image"]
