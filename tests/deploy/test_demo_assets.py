"""The committed CLIP and images are what they are said to be."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from deploy.demo import fashion, make_data, train_clip

DATA_SET = fashion.SOURCE
needs_data_set = pytest.mark.skipif(not DATA_SET.is_dir(), reason="install Debian's dataset-fashion-mnist")


def test_the_sizes_are_within_bounds() -> None:
    assert sum(file.stat().st_size for file in train_clip.FOLDER.iterdir()) <= 9_000_000
    assert make_data.OUT.stat().st_size <= 8_000_000


def test_the_images_attribute_their_source() -> None:
    text = (make_data.OUT.parent / "LICENSE-fashion-mnist").read_text()
    assert "MIT" in text
    assert "Zalando" in text


def test_no_image_is_in_two_splits_and_none_was_seen_by_the_clip() -> None:
    rows = pq.read_table(make_data.OUT).to_pylist()
    assert len({row["png"] for row in rows}) == len(rows)
    assert min(row["source_index"] for row in rows) >= max(train_clip.WATCHED_ON.stop, train_clip.TRAINED_ON.stop)
    assert {row["split"] for row in rows} == set(make_data.DEALT)


def test_the_labelled_set_has_the_blind_spot_and_the_other_splits_show_it() -> None:
    rows = pq.read_table(make_data.OUT).to_pylist()

    def blind(split: str) -> int:
        return sum((row["split"], row["class_name"], row["tone"]) == (split, *make_data.BLIND) for row in rows)

    assert blind("labelled") == 0
    assert min(blind("pool"), blind("holdout")) >= 100
    assert blind("development") >= 50


@needs_data_set
def test_the_committed_images_are_what_the_script_draws(tmp_path: Path) -> None:
    drawn = make_data.as_table(fashion.read("train"), seed=0)
    held = pq.read_table(make_data.OUT)
    assert drawn.drop_columns(["png"]).equals(held.drop_columns(["png"]))
