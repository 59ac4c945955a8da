"""Dataset versions: nothing straddles, nothing vanishes, and evaluation data does not shrink in silence."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import text

from models.corpus import Sample
from models.errors import BadInput, CorruptData
from models.learning import DatasetVersion
from models.retraining import RetrainPlan, SplitPolicy
from models.states import BatchState, Split
from storage import labels, runs, tables
from storage.stores import open_stores
from tasks import datasets, grouping, learning, quality, scenarios
from tasks.datasets import Decided, Row
from tests.tasks.conftest import prepare
from tests.tasks.test_loop import plan, run_to_labels

Draw = Callable[..., Path]
ROOT = Path(__file__).parents[2]
HELD = SplitPolicy(development=0.2, holdout=0.3)


def frozen(**more: object) -> tuple[DatasetVersion, dict[str, tuple[str, str, str]]]:
    """A version, and class, split and group by sample."""
    dataset_id = datasets.freeze_dataset(RetrainPlan(corpora=["train"], **more))  # type: ignore[arg-type]
    with open_stores() as stores:
        version = stores.db.get_one(DatasetVersion, dataset_id)
        rows = datasets.read_listing(stores, version).to_pylist()
        stores.db.expunge(version)
    return version, {row["sample_id"]: (row["class_name"], row["split"], row["group"]) for row in rows}


def no_group_is_in_two_splits(rows: dict[str, tuple[str, str, str]]) -> bool:
    splits: dict[str, set[str]] = {}
    for _, split, group in rows.values():
        splits.setdefault(group, set()).add(split)
    return all(len(some) == 1 for some in splits.values())


def test_a_version_holds_train_and_evaluation_data_each_in_its_split(world: Path) -> None:
    version, rows = frozen()
    assert version.splits == {"train": 40, "development": 24, "holdout": 24}
    assert version.samples == len(rows) == 88
    assert version.learnt_hash != version.content_hash
    wanted = RetrainPlan(model="m", corpora=["train"])
    assert learning.fit(version.id or 0, wanted).samples == 40
    assert frozen()[0].id == version.id
    assert datasets.freeze_dataset(RetrainPlan()) == version.id  # no corpora: all that are for training


def test_campaign_answers_are_train_unless_the_policy_holds_some_back(world: Path) -> None:
    run_to_labels(plan(budget=20))
    base, _ = frozen()
    every, rows = frozen(campaigns=["c"])
    assert every.splits == {"train": 60, "development": 24, "holdout": 24}
    assert (every.parent_id, base.parent_id, every.adds_batches) == (base.id, None, [1])
    assert frozen(campaigns=["*"])[0].id == every.id
    assert no_group_is_in_two_splits(rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "_require_whole_evaluation", lambda *_: None)
        held, rows = frozen(campaigns=["c"], splits=HELD)
    assert held.splits["train"] < 60
    assert held.splits["holdout"] > 24
    assert sum(held.splits.values()) + sum(held.excluded.values()) == 108
    assert no_group_is_in_two_splits(rows)


def test_a_group_keeps_its_split_when_later_labels_join(world: Path) -> None:
    run_to_labels(plan("c", budget=12))
    first = frozen(campaigns=["c"], splits=HELD)[1]
    run_to_labels(plan("d", budget=25))
    later, rows = frozen(campaigns=["c", "d"], splits=HELD)
    alone = frozen(campaigns=["d"], splits=HELD)[1]
    assert all(rows[sample_id][1] == split for sample_id, (_, split, _) in first.items())
    assert all(rows[sample_id][1] == split for sample_id, (_, split, _) in alone.items())
    assert len(rows) == later.samples == 88 + 37


def test_a_train_image_that_is_nearly_one_of_evaluation_data_is_left_out_and_counted(world: Path) -> None:
    train = world / "images" / "train"
    pixels = np.asarray(Image.open(world / "images" / "held" / "0003.png")).copy()
    pixels[0, 0] += 1
    Image.fromarray(pixels).save(train / "nearly.png")
    (train / "same.png").write_bytes((world / "images" / "dev" / "0002.png").read_bytes())
    with (train / "metadata.csv").open("a") as handle:
        handle.write("nearly.png,bar,light\nsame.png,square,light\n")
    prepare("train", train, "train")
    version, rows = frozen()
    assert version.excluded == {"in evaluation data": 1, "related to evaluation data": 1}
    assert version.splits["train"] == 40
    assert no_group_is_in_two_splits(rows)
    apart = SplitPolicy(group_by="")
    assert frozen(splits=apart)[0].excluded == {"in evaluation data": 1}


def test_a_metadata_column_groups_and_what_it_relates_to_evaluation_data_trains_nothing(world: Path) -> None:
    with pytest.raises(BadInput, match=r"0 labels of 0 classes .*left out: 40 related to evaluation data"):
        frozen(splits=SplitPolicy(group_by="tone"))
    with pytest.raises(BadInput, match=r"no labelled corpus has a column 'video' to group by \(there are: .*tone"):
        frozen(splits=SplitPolicy(group_by="video"))


def test_the_group_is_the_columns_value(draw: Draw) -> None:
    for seed, (name, split) in enumerate((("train", "train"), ("held", "holdout"))):
        folder = draw(name, 12, seed=seed)
        lines = (folder / "metadata.csv").read_text().splitlines()
        videos = ["video", *(f"{name}-{number // 4}" if number else "" for number in range(12))]
        joined = [f"{line},{video}" for line, video in zip(lines, videos, strict=True)]
        (folder / "metadata.csv").write_text("\n".join(joined))
        prepare(name, folder, split)
    before, alone = frozen(splits=SplitPolicy(group_by=""))
    version, rows = frozen(splits=SplitPolicy(group_by="video"))
    assert (version.id, version.learnt_hash) != (before.id, before.learnt_hash)
    assert frozen(splits=SplitPolicy(group_by="")) == (before, alone)
    assert len({group for *_, group in alone.values()}) == 24
    assert version.splits == {"train": 12, "holdout": 12}
    names = [group for _, _, group in rows.values()]
    assert sorted({name for name in names if "-" in name}) == [f"{a}-{n}" for a in ("held", "train") for n in range(3)]
    assert sum("-" not in name for name in names) == 2  # those without a value are alone


def test_evaluation_data_that_would_go_away_is_refused_until_it_is_meant(world: Path) -> None:
    run_to_labels(plan(budget=20))
    before = frozen(campaigns=["c"], splits=HELD)[0]
    held = before.splits["holdout"] - 24
    assert frozen(campaigns=["c"])[0].id == before.id
    quality.set_state(1, BatchState.REJECTED, "nonsense")
    with pytest.raises(BadInput, match=rf"{held} holdout .*of dataset version {before.id} would be .* labels back"):
        frozen(campaigns=["c"], splits=HELD)
    shrunk = HELD.model_copy(update={"may_shrink": True})
    assert frozen(campaigns=["c"], splits=shrunk)[0].splits["holdout"] == 24
    frozen()  # without campaigns nothing is missing


def test_what_a_scenario_holds_is_never_trained_on_nor_what_is_related_to_it(world: Path) -> None:
    run_to_labels(plan("c", budget=20))
    run_to_labels(plan("d", budget=20))
    every = frozen(campaigns=["c", "d"], splits=SplitPolicy(holdout=0.5))[1]
    scenarios.issue_scenario("light-bar")
    with open_stores() as stores:
        listing = stores.objects.read(runs.get_scenario(stores.db, name="issue-light-bar").listing_key)
        asked = {sample.id: sample.uri for sample in labels.asked_samples(stores.db)}
        answered = labels.resolved_of_batches(stores.db, batches=labels.batches_of(stores.db, campaigns=["c"]))
    held = set(tables.from_bytes(listing).column("sample_id").to_pylist())
    of_c = {sample.id for _, sample in answered}
    both, other = sorted(held & of_c), sorted((held & set(asked)) - of_c)
    assert both and len(other) > 1 and all(every[sample_id][1] == "holdout" for sample_id in (*both, *other))

    base = frozen()[0]
    version, rows = frozen(campaigns=["c"], splits=SplitPolicy(group_by=""))
    assert {rows[sample_id][1] for sample_id in both} == {"holdout"}
    assert not held & {sample_id for sample_id, row in rows.items() if row[1] == "train"}
    assert (version.parent_id, version.excluded) == (base.id, {})

    train = world / "images" / "train"
    same, near = (world / "images" / "pool" / Path(asked[one]).name for one in other[:2])
    (train / "same.png").write_bytes(same.read_bytes())
    pixels = np.asarray(Image.open(near)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(train / "nearly.png")
    with (train / "metadata.csv").open("a") as handle:
        handle.write("nearly.png,bar,light\nsame.png,square,light\n")
    prepare("train", train, "train")
    for more in ({}, {"campaigns": ["c"]}):
        version, rows = frozen(**more)
        assert version.splits["train"] == 40 + len(of_c - held if more else ())
        assert version.excluded == {"in evaluation data": 1, "related to evaluation data": 1}
        assert not set(other) & set(rows) and no_group_is_in_two_splits(rows)


def test_what_was_held_back_stays_so_whatever_later_shares_are(world: Path) -> None:
    run_to_labels(plan("c", budget=20))
    first = frozen(campaigns=["c"], splits=HELD)[1]
    run_to_labels(plan("d", budget=25))
    for splits in (SplitPolicy(), SplitPolicy(group_by=""), SplitPolicy(holdout=0.1)):
        rows = frozen(campaigns=["*"], splits=splits)[1]
        assert {one: rows[one][1] for one, row in first.items() if row[1] != "train"} == {
            one: row[1] for one, row in first.items() if row[1] != "train"
        }
    meant = frozen(campaigns=["*"], splits=SplitPolicy(may_shrink=True))[0]
    assert meant.splits == {"train": 85, "development": 24, "holdout": 24}
    assert frozen(campaigns=["*"])[0].id == meant.id


def test_labels_of_a_holdout_corpus_that_vanish_are_missed(world: Path) -> None:
    before = frozen()[0]
    with open_stores() as stores:
        stores.db.connection().execute(text("DELETE FROM label WHERE source = 'import:held' AND class_name = 'bar'"))
    with pytest.raises(BadInput, match=f"12 holdout samples of dataset version {before.id} would be gone"):
        frozen()


def test_skips_are_counted_and_an_older_usable_label_still_counts(world: Path) -> None:
    lines = (world / "truth.csv").read_text().splitlines()
    (world / "truth.csv").write_text("\n".join(line for line in lines if not line.endswith(",bar")))
    run_to_labels(plan(budget=60))
    version, rows = frozen(campaigns=["c"])
    assert version.excluded["skipped"] == 30
    assert version.samples + sum(version.excluded.values()) == 88 + 60
    with open_stores() as stores:
        answers = labels.resolved_of_batches(stores.db, batches=labels.batches_of(stores.db))
        found = datasets.usable([*answers, *labels.labels_of_corpora(stores.db, corpora=[])])
    assert len(found.rows) == 30
    assert no_group_is_in_two_splits(rows)


def test_a_changed_listing_is_refused_and_one_from_before_is_for_training(world: Path) -> None:
    version, _ = frozen()
    with open_stores() as stores:
        stores.objects.write("old.parquet", stores.objects.read(version.listing_key))
        old = DatasetVersion(content_hash="x", listing_key="old.parquet", samples=88)
        assert datasets.read_listing(stores, old).num_rows == 88
        stores.objects.write(version.listing_key, b"changed")
        with pytest.raises(CorruptData, match="checksum differs"):
            datasets.read_listing(stores, version)


def test_the_same_inputs_in_another_process_give_the_same_hash(world: Path) -> None:
    run_to_labels(plan(budget=20))
    here = frozen(campaigns=["c"], splits=HELD)[0].content_hash
    with open_stores() as stores:
        stores.db.connection().execute(text("DELETE FROM datasetversion"))
    code = (
        "from models.retraining import *; from tasks import datasets; from storage.stores import open_stores\n"
        "from models.learning import DatasetVersion\n"
        "n = datasets.freeze_dataset(RetrainPlan(corpora=['train'], campaigns=['c'],"
        " splits=SplitPolicy(development=0.2, holdout=0.3)))\n"
        "with open_stores() as s: print(s.db.get_one(DatasetVersion, n).content_hash)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
    )
    assert found.stdout.split()[-1] == here


@pytest.mark.parametrize("seed", range(100))
def test_whatever_the_groups_nothing_straddles_and_nothing_vanishes(seed: int) -> None:
    random = Random(seed)
    ids = [f"{number:02d}" for number in range(random.randint(1, 25))]
    groups = {sample_id: random.choice("abcdefgh") for sample_id in ids}
    where = {sample_id: random.sample(["train", "eval", "no"], random.randint(1, 2)) for sample_id in ids}

    def row(sample_id: str, split: Split = Split.TRAIN) -> Row:
        return Row(Sample(id=sample_id, uri=""), "a", split)

    train = {one: row(one) for one in ids if "train" in where[one]}
    without = {one: "skipped" for one in ids if "no" in where[one] and one not in train}
    evaluation = {
        one: row(one, random.choice([Split.DEVELOPMENT, Split.HOLDOUT])) for one in ids if "eval" in where[one]
    }
    held = {one: random.choice(list(Split)) for one in train if random.random() < 0.5}
    found = datasets.decide(Decided(train, without), evaluation, held, groups)

    splits: dict[str, set[Split]] = {}
    for sample_id, decided in found.rows.items():
        splits.setdefault(groups[sample_id], set()).add(decided.split)
    assert all(len(some) == 1 for some in splits.values())
    assert set(found.rows) | set(found.excluded) == set(train) | set(without) | set(evaluation)
    # What a train corpus and evaluation data both hold is in the one and counted in the other; so is what was skipped.
    assert len(found.rows) + len(found.excluded) == len(train) + len(without) + len(evaluation) - sum(
        found.excluded.get(one) == "related to holdout data" and one in {*train, *without} for one in evaluation
    )
    for sample_id, decided in evaluation.items():
        if decided.split is Split.HOLDOUT:
            assert found.rows[sample_id].split is Split.HOLDOUT


def test_elements_of_one_image_are_one_group_whatever_else_is() -> None:
    whole, boxes = "a" * 64, ["b" * 64, "c" * 64]
    samples = [
        Sample(id=whole, uri="w"),
        *(Sample(id=one, uri="b", image_id=whole) for one in boxes),
        Sample(id="d" * 64, uri="d", image_id="e" * 64),
        Sample(id="0" * 64, uri="o"),
    ]
    with open_stores() as stores:
        for policy in (SplitPolicy(group_by=""), SplitPolicy()):
            groups = grouping.names_of(stores, samples, grouping.Rule(policy, None, []))
            assert len({groups[one] for one in (whole, *boxes)}) == 1
            assert len(set(groups.values())) == 3
            # The name follows from the image, so that a box that joins later finds its group.
            assert grouping.names_of(stores, samples[1:2], grouping.Rule(policy, None, [])) == {boxes[0]: groups[whole]}
