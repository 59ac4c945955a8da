"""An exported folder is clip-retrieval's layout, whole or not there, and takes nobody else's place."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.errors import BadInput
from models.plans import VectorsPlan
from storage import tables
from tasks import exporting_vectors, importing_vectors
from tests.tasks.conftest import prepare

Draw = Callable[..., Path]


@pytest.fixture
def pool(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An embedded corpus of 12 images, of which one is broken, in two shards."""
    monkeypatch.setenv("DIPNET_SHARD_SIZE", "7")
    folder = draw("pool", 12)
    (folder / "0003.png").write_bytes(b"broken")
    prepare("pool", folder, "none")
    return folder


def export(folder: Path) -> bool:
    """Export; whether it was there already."""
    return exporting_vectors.export_vectors("pool", folder).reused


def test_the_layout_is_that_of_clip_retrieval(pool: Path, tmp_path: Path) -> None:
    assert not export(tmp_path / "out")
    parts = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert parts == [
        "dipnet.json",
        "img_emb/img_emb_0.npy",
        "img_emb/img_emb_1.npy",
        "metadata/metadata_0.parquet",
        "metadata/metadata_1.parquet",
    ]
    rows = np.load(tmp_path / "out" / "img_emb" / "img_emb_0.npy", allow_pickle=False)
    table = pq.read_table(tmp_path / "out" / "metadata" / "metadata_0.parquet")
    assert (rows.dtype, rows.shape) == (np.float16, (6, 64))
    assert table.column("image_path").to_pylist() == [str(pool / f"{number:04d}.png") for number in (0, 1, 2, 4, 5, 6)]
    assert table.column_names[:3] == ["image_path", "sample_id", "key"]
    assert set(table.column("tone").to_pylist()) == {"dark", "light"}


def test_the_same_export_is_left_alone_and_another_takes_its_place(pool: Path, tmp_path: Path) -> None:
    export(tmp_path / "out")
    assert export(tmp_path / "out")
    (tmp_path / "out" / "img_emb" / "img_emb_1.npy").unlink()
    assert not export(tmp_path / "out")
    (pool / "new.png").write_bytes((pool / "0000.png").read_bytes() + b"\n")
    prepare("pool", pool, "none")
    assert not export(tmp_path / "out")
    assert len(list((tmp_path / "out" / "img_emb").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_of_somebody_else_is_refused(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert not export(tmp_path / "mine")  # an empty one is as good as none
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "theirs" / "img_emb").mkdir(parents=True)
    for name in ("mine", "file", "theirs"):
        with pytest.raises(BadInput, match=r"holds something else|is no folder"):
            export(tmp_path / name)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"


def test_an_export_that_fails_leaves_what_was_there(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path / "out")
    before = (tmp_path / "out" / "dipnet.json").read_bytes()
    (pool / "new.png").write_bytes((pool / "0000.png").read_bytes() + b"\n")
    prepare("pool", pool, "none")

    def dying(_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tables, "to_bytes", dying)
        with pytest.raises(KeyboardInterrupt):
            export(tmp_path / "out")
        with pytest.raises(KeyboardInterrupt):
            export(tmp_path / "other")
    assert (tmp_path / "out" / "dipnet.json").read_bytes() == before
    assert not [path.name for path in tmp_path.iterdir() if "other" in path.name or path.name.startswith(".")]


@pytest.mark.parametrize("encoder", [None, {}, {"name": "x", "dim": "7"}, {"name": "x", "dim": 10**9}, ["x"]])
def test_a_folder_that_says_nonsense_of_itself_is_refused(pool: Path, tmp_path: Path, encoder: object) -> None:
    export(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "dipnet.json").read_text())
    (tmp_path / "out" / "dipnet.json").write_text(json.dumps({**record, "encoder": encoder}))
    with pytest.raises(BadInput, match="does not say what made the vectors"):
        importing_vectors.import_vectors(VectorsPlan(corpus="pool", folder=str(tmp_path / "out")))
