"""Vectors from elsewhere: a round trip changes nothing, twice adds nothing, and what does not belong is told, not taken."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from models.errors import BadInput, Incompatible, NotFound
from models.plans import CampaignPlan, IngestPlan, SelectionPolicy, VectorsPlan
from models.values import VectorsImported
from storage import corpora, vectors
from storage.stores import open_stores
from tasks import embedding, exporting_vectors, features, ingesting, mining, planning, searching, shards, views
from tasks import importing_vectors as importing
from tasks.compute import images
from tests.tasks.conftest import prepare
from tests.tasks.test_loop import rows_by_table

Draw = Callable[..., Path]
CLIP = str(Path(__file__).parents[2] / "deploy" / "demo" / "clip")


def take(corpus: str, folder: Path, **more: Any) -> VectorsImported:
    return importing.import_vectors(VectorsPlan(corpus=corpus, folder=str(folder), **more))


def held(corpus: str, encoder: str = CLIP) -> dict[str, NDArray[np.float32]]:
    """Vectors by sample id."""
    with open_stores() as stores:
        spec = corpora.get_encoder(stores.db, name=encoder)
        rows = corpora.embedded_shards(stores.db, corpora=[corpora.get_corpus(stores.db, name=corpus)], encoder=spec)
        return {
            sample_id: vector
            for shard in features.open_shards(stores, rows, spec)
            for sample_id, vector in zip(shard.sample_ids, np.asarray(shard.vectors, np.float32), strict=True)
        }


def same(one: dict[str, NDArray[np.float32]], other: dict[str, NDArray[np.float32]]) -> bool:
    return one.keys() == other.keys() and all(np.allclose(one[key], other[key], atol=1e-3) for key in one)


@pytest.fixture
def pool(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An embedded corpus of 25 images in three shards; `again` holds the same images, without vectors."""
    monkeypatch.setenv("DIPNET_SHARD_SIZE", "10")
    folder = draw("pool", 25)
    prepare("pool", folder, "none")
    ingesting.ingest(IngestPlan(corpus="again", prefix=str(folder)))
    return folder


def files(folder: Path, rows: NDArray[Any], **columns: list[Any]) -> dict[str, str]:
    """A file of vectors, and one of ids."""
    np.save(folder / "v.npy", rows)
    pq.write_table(pa.table(columns), folder / "ids.parquet")
    return {"vectors": str(folder / "v.npy"), "ids": str(folder / "ids.parquet")}


def random_rows(count: int, dim: int = 16) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=(count, dim)) * 7


def test_what_is_exported_and_imported_is_the_same(pool: Path, tmp_path: Path) -> None:
    exported = exporting_vectors.export_vectors("pool", tmp_path / "out")
    assert (exported.vectors, exported.parts, exported.reused) == (25, 3, False)
    found = take("again", tmp_path / "out")
    assert (found.given, found.vectors, found.unmatched, found.without, found.declared) == (25, 25, 0, 0, False)
    assert (found.shards_done, found.shards_skipped, found.shards_left) == (3, 0, 0)
    assert found.cosine is not None
    assert found.cosine > 0.999
    assert same(held("pool"), held("again"))
    image = pool / "0005.png"
    assert searching.search("again", image=image, text="", encoder_name="", top=1)[0]["image"] == str(image)
    assert searching.search("again", image=None, text="a dress", encoder_name="", top=1)


def test_a_second_import_adds_nothing(pool: Path, tmp_path: Path, house: Path) -> None:
    exporting_vectors.export_vectors("pool", tmp_path / "out")
    take("again", tmp_path / "out")
    rows, there = rows_by_table(), sorted(house.rglob("*.npy"))
    found = take("again", tmp_path / "out")
    assert (found.vectors, found.unmatched, found.shards_done, found.shards_skipped) == (0, 0, 0, 3)
    assert (rows_by_table(), sorted(house.rglob("*.npy"))) == (rows, there)


@pytest.mark.parametrize("column", ["image_path", "key", "file_name", "uri", "sha256", "sample_id"])
def test_images_are_found_by_what_they_are_called_and_by_what_they_hold(
    pool: Path, tmp_path: Path, column: str
) -> None:
    vectors_of = held("pool")
    paths = {images.fingerprint(file.read_bytes()): file for file in pool.glob("*.png")}
    calls: dict[str, Callable[[str], str]] = {
        "image_path": lambda sample_id: f"/old/machine/{paths[sample_id].name}",
        "key": lambda sample_id: paths[sample_id].stem,
        "file_name": lambda sample_id: f"pool/{paths[sample_id].name}",
        "uri": lambda sample_id: str(paths[sample_id]),
        "sha256": str.upper,
        "sample_id": str,
    }
    given = files(
        tmp_path, np.stack(list(vectors_of.values())) * 3, **{column: [calls[column](one) for one in vectors_of]}
    )
    found = importing.import_vectors(VectorsPlan(corpus="again", encoder=CLIP, **given))
    assert (found.vectors, found.unmatched) == (25, 0)
    assert same(vectors_of, held("again"))


def test_what_has_no_image_and_what_has_no_vector_is_counted(pool: Path, tmp_path: Path) -> None:
    names = [f"{number:04d}.png" for number in range(12)] + ["other.png"]
    rows = random_rows(13)
    rows[3], rows[4, 0] = 0, np.inf
    found = importing.import_vectors(
        VectorsPlan(corpus="again", encoder="theirs", dim=16, **files(tmp_path, rows, image_path=names))
    )
    assert (found.given, found.vectors, found.unmatched, found.ambiguous) == (13, 10, 1, 0)
    assert (found.shards_done, found.shards_left, found.without) == (2, 1, 8)
    assert found.quarantined == {"no vector given": 8, "no finite vector": 2}
    lengths = [np.linalg.norm(vector) for vector in held("again", "theirs").values()]
    np.testing.assert_allclose(lengths, 1.0, atol=2e-3)
    told = {row["reason"] for row in views.quarantine_rows("again")}
    assert told == {"no vector given", "no finite vector"}


def test_a_name_that_fits_several_images_is_no_name(draw: Draw, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        draw(f"x/{folder}", 3, seed=len(folder))
    ingesting.ingest(IngestPlan(corpus="x", prefix=str(tmp_path / "images" / "x")))
    names = ["0000.png", "one/0001.png", "two/0001.png", "two/0002.png", "two/0002.png"]
    found = importing.import_vectors(
        VectorsPlan(corpus="x", encoder="theirs", dim=16, **files(tmp_path, random_rows(5), key=names))
    )
    assert (found.vectors, found.ambiguous, found.unmatched) == (2, 1, 2)


def test_other_bytes_than_the_vector_is_of_have_none(pool: Path, tmp_path: Path) -> None:
    exporting_vectors.export_vectors("pool", tmp_path / "out")
    (pool / "0003.png").write_bytes((pool / "0004.png").read_bytes() + b"\n")
    ingesting.ingest(IngestPlan(corpus="changed", prefix=str(pool)))
    found = take("changed", tmp_path / "out")
    assert (found.vectors, found.without, found.unmatched) == (24, 1, 1)


def test_an_encoder_that_did_not_make_them_is_refused_and_nothing_is_written(pool: Path, tmp_path: Path) -> None:
    before = rows_by_table()["embeddedshard"]
    given = files(tmp_path, random_rows(25, 64), key=[f"{number:04d}" for number in range(25)])
    with pytest.raises(Incompatible, match=r"did not make these vectors: of 8 images it makes others \(median cosine"):
        importing.import_vectors(VectorsPlan(corpus="again", encoder=CLIP, **given))
    given = files(tmp_path, random_rows(25, 16), key=[f"{number:04d}" for number in range(25)])
    with pytest.raises(BadInput, match="makes vectors of 64 dimensions, and these have 16"):
        importing.import_vectors(VectorsPlan(corpus="again", encoder=CLIP, **given))
    with pytest.raises(BadInput, match=r"unknown encoder 'theirs'.*declare what made them: --dim 16"):
        importing.import_vectors(VectorsPlan(corpus="again", encoder="theirs", **given))
    with pytest.raises(BadInput, match="the vectors have 16 dimensions, not 17"):
        importing.import_vectors(VectorsPlan(corpus="again", encoder="theirs", dim=17, **given))
    with pytest.raises(BadInput, match="nothing says what made the vectors"):
        importing.import_vectors(VectorsPlan(corpus="again", **given))
    with pytest.raises(NotFound, match="there is no corpus 'nowhere'"):
        importing.import_vectors(VectorsPlan(corpus="nowhere", encoder="theirs", dim=16, **given))
    assert rows_by_table()["embeddedshard"] == before


def test_vectors_about_other_images_are_refused(pool: Path, tmp_path: Path) -> None:
    given = files(tmp_path, random_rows(2), key=["x", "y"])
    with pytest.raises(BadInput, match=r"none of the 2 vectors is about an image of corpus 'again': they name 'x'"):
        importing.import_vectors(VectorsPlan(corpus="again", encoder="theirs", dim=16, **given))


def test_a_declared_encoder_mines_from_images_of_the_corpus_and_says_what_it_cannot(pool: Path, tmp_path: Path) -> None:
    names = sorted(file.name for file in pool.glob("*.png"))
    light = np.asarray([number // 2 % 2 for number in range(25)], np.float64)
    rows = random_rows(25, 8) * 0.02 + np.outer(light, np.eye(8)[0]) + np.outer(1 - light, np.eye(8)[1])
    importing.import_vectors(
        VectorsPlan(corpus="again", encoder="theirs", dim=8, **files(tmp_path, rows, image_path=names))
    )
    found = searching.search("again", image=pool / "0002.png", text="", encoder_name="theirs", top=10)
    assert all(int(Path(row["image"]).stem) // 2 % 2 for row in found)
    with pytest.raises(Incompatible, match="encoder 'theirs' is only declared: its vectors were imported"):
        searching.search("again", image=None, text="a light bar", encoder_name="theirs", top=3)
    (tmp_path / "new.png").write_bytes((pool / "0002.png").read_bytes() + b"\n")
    with pytest.raises(Incompatible, match=r"new\.png' is in no corpus that has vectors of 'theirs'"):
        searching.search("again", image=tmp_path / "new.png", text="", encoder_name="theirs", top=3)
    searching.new_issue("light", class_name="bar", where="", description="")
    searching.add_exemplars("light", [pool / "0002.png", pool / "0003.png"], positive=True)
    policy = SelectionPolicy(budget=5, strategy="nearest", near_duplicate_cosine=1.0, random_share=0.0)
    wanted = CampaignPlan(campaign="c", issue="light", corpora=["again"], encoder="theirs", policy=policy)
    assert mining.mine_candidates(planning.plan_run(wanted)).candidates == 5
    assert {row["queries"] for row in views.embedding_rows()} == {"any image", "images of corpora only"}


def test_declared_encoders_of_other_names_or_weights_never_meet(pool: Path, tmp_path: Path) -> None:
    given = files(tmp_path, random_rows(25), key=[f"{number:04d}" for number in range(25)])
    for more in ({}, {"weights_sha256": "a" * 64}, {"preprocessing": "squashed"}, {"encoder": "others"}):
        plan = {"corpus": "again", "encoder": "theirs", "dim": 16, **given, **more}
        assert importing.import_vectors(VectorsPlan.model_validate(plan)).shards_done == 3
        assert importing.import_vectors(VectorsPlan.model_validate(plan)).shards_skipped == 3


def test_an_export_keeps_what_was_declared(pool: Path, tmp_path: Path) -> None:
    given = files(tmp_path, random_rows(25), key=[f"{number:04d}" for number in range(25)])
    importing.import_vectors(VectorsPlan(corpus="pool", encoder="theirs", dim=16, weights_sha256="b" * 64, **given))
    exporting_vectors.export_vectors("pool", tmp_path / "out", "theirs")
    assert take("again", tmp_path / "out").declared
    assert same(held("pool", "theirs"), held("again", "theirs"))
    with open_stores() as stores:
        assert corpora.get_encoder(stores.db, name="theirs").weights_sha256 == "b" * 64


def test_a_kill_leaves_whole_shards_and_the_next_import_goes_on(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporting_vectors.export_vectors("pool", tmp_path / "out")
    real = shards.put_away
    done: list[int] = []

    def dying(*args: Any, **more: Any) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        real(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "put_away", dying)
        with pytest.raises(KeyboardInterrupt):
            take("again", tmp_path / "out")
    assert len(held("again")) == 10
    found = take("again", tmp_path / "out")
    assert (found.shards_done, found.shards_skipped) == (2, 1)
    assert same(held("pool"), held("again"))


def test_unreadable_images_keep_their_reason_whatever_vector_they_are_given(pool: Path, tmp_path: Path) -> None:
    (pool / "0007.png").write_bytes(b"no image")
    (pool / "0008.png").unlink()
    given = files(tmp_path, random_rows(25), key=[f"{number:04d}" for number in range(25)])
    found = importing.import_vectors(VectorsPlan(corpus="again", encoder="theirs", dim=16, **given))
    assert found.vectors == 23
    assert sum(found.quarantined.values()) == 2
    assert "not an image" in found.quarantined or "changed since it was listed" in found.quarantined


@pytest.mark.parametrize("more", [{}, {"folder": "x", "vectors": "v.npy"}, {"vectors": "v.npy"}, {"ids": "i.csv"}])
def test_a_plan_names_one_source(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="give a folder, or vectors with ids"):
        VectorsPlan(corpus="x", **more)
    with pytest.raises(ValidationError, match="give its dim too"):
        VectorsPlan(corpus="x", folder="y", weights_sha256="a" * 64)


def test_stored_vectors_and_ids_lie_row_by_row(pool: Path, tmp_path: Path) -> None:
    exporting_vectors.export_vectors("pool", tmp_path / "out")
    take("again", tmp_path / "out")
    with open_stores() as stores:
        for row in corpora.read_shards(stores.db, corpus_id=2):
            table = ingesting.read_reads(stores, row)
            assert table.column(vectors.IMAGE_ID).null_count == table.num_rows
            assert row.backend == "imported"


def test_vectors_of_webdatasets_find_members_of_tars_by_their_keys(draw: Draw, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    drawn = draw("drawn", 6)
    for number in range(2):
        with tarfile.open(tmp_path / "tars" / f"{number:05d}.tar", "w") as archive:
            for file in sorted(drawn.glob("*.png"))[3 * number : 3 * number + 3]:
                archive.add(file, f"{number:05d}{file.name}")
    prepare("tars", tmp_path / "tars", "none")
    ingesting.ingest(IngestPlan(corpus="again", prefix=str(tmp_path / "tars")))
    vectors_of = held("tars")
    by_hash = {images.fingerprint(file.read_bytes()): file for file in drawn.glob("*.png")}
    keys = [f"{int(by_hash[one].stem) // 3:05d}{by_hash[one].stem}" for one in vectors_of]  # without .png
    given = files(tmp_path, np.stack(list(vectors_of.values())), image_path=keys)
    found = importing.import_vectors(VectorsPlan(corpus="again", encoder=CLIP, **given))
    assert (found.vectors, found.unmatched) == (6, 0)
    assert same(vectors_of, held("again"))


def test_vectors_of_boxes_come_back_to_their_boxes_and_never_to_a_whole_image(draw: Draw, tmp_path: Path) -> None:
    folder = draw("pool", 3)
    lines = [f"{number:04d}.png,{x},2,12,20" for number in range(3) for x in (0, 9)]
    (tmp_path / "boxes.csv").write_text("\n".join(["file_name,x,y,width,height", *lines]))
    for name in ("boxes", "again"):
        ingesting.ingest(IngestPlan(corpus=name, prefix=str(folder), boxes=str(tmp_path / "boxes.csv")))
    embedding.embed_shards(embedding.pending_shards("boxes", ""), "", 16)
    exporting_vectors.export_vectors("boxes", tmp_path / "out")
    assert take("again", tmp_path / "out").vectors == 6
    assert same(held("boxes"), held("again"))
    given = files(tmp_path, random_rows(3), image_path=[f"{number:04d}.png" for number in range(3)])
    with pytest.raises(BadInput, match="none of the 3 vectors is about an image"):
        importing.import_vectors(VectorsPlan(corpus="again", encoder="theirs", dim=16, **given))


def test_images_that_were_given_no_vector_are_embedded_on_request(pool: Path, tmp_path: Path) -> None:
    every = held("pool")
    some = dict(list(every.items())[:12])
    given = files(tmp_path, np.stack(list(some.values())), sample_id=list(some))
    found = importing.import_vectors(VectorsPlan(corpus="again", encoder=CLIP, **given))
    assert (found.vectors, found.without, found.shards_left) == (12, 8, 1)
    embedding.embed_shards(embedding.pending_shards("again", "", retry=True), "", 16, retry=True)
    assert same(every, held("again"))
    assert views.quarantine_rows("again") == []
