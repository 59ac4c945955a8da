"""Vectors from outside: what is usable is mapped, what is not is one clear line, and nothing is ever executed."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.errors import BadInput
from storage import vector_files

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def part(folder: Path, number: str, rows: np.ndarray[Any, Any], **columns: object) -> None:
    """A part of clip-retrieval's layout."""
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    np.save(folder / "img_emb" / f"img_emb_{number}.npy", rows)
    pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number}.parquet")


def test_parts_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2):
        part(tmp_path, str(number), ROWS + number, image_path=[f"{number}-{row}" for row in range(4)], caption=[""] * 4)
    found = vector_files.of_folder(tmp_path)
    assert [float(one.vectors[0, 0]) for one in found] == [2.0, 10.0]
    assert isinstance(found[0].vectors, np.memmap)
    assert found[1].names.to_pydict() == {"image_path": ["10-0", "10-1", "10-2", "10-3"]}


def test_parts_may_lie_in_one_folder_and_be_numbered_with_zeros(tmp_path: Path) -> None:
    np.save(tmp_path / "img_emb_007.npy", ROWS.astype(np.float16))
    pq.write_table(pa.table({"key": ["a", None, "c", "d"]}), tmp_path / "metadata_007.parquet")
    (found,) = vector_files.of_folder(tmp_path)
    assert found.names.column("key").to_pylist() == ["a", "", "c", "d"]


def test_a_file_of_vectors_and_one_of_ids(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", ROWS)
    (tmp_path / "ids.csv").write_text("key,other\n0001,5\n0002,6\nx,7\n,8\n")
    (tmp_path / "ids.txt").write_text("a.jpg\nb.jpg\nc.jpg\nd.jpg\n")
    (tmp_path / "hashes.txt").write_text("\n".join(f"{row:064x}" for row in range(4)))
    columns = [
        vector_files.of_files(tmp_path / "v.npy", tmp_path / name).names
        for name in ("ids.csv", "ids.txt", "hashes.txt")
    ]
    assert [one.column_names for one in columns] == [["key"], ["key"], ["sample_id"]]
    assert columns[0].column("key").to_pylist() == ["0001", "0002", "x", ""]


class Evil:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def saved(array: object) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=True)  # type: ignore[arg-type]
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (saved(np.asarray([Evil()], dtype=object)), "object"),
        (pickle.dumps(Evil()), "cannot be read as npy"),
        (b"", "cannot be read as npy"),
        (b"PK\x03\x04", "cannot be read as npy"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 512)}"), "cannot be read as npy"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 0)}"), "of at most 65,536 columns"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 2)}", bytes(64)), "cannot be read as npy|shape"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 10**8)}"), "cannot be read as npy"),
        (npy("__import__('os').getcwd()"), "cannot be read as npy"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3)}", bytes(47)), "cannot be read as npy"),
        (saved(np.zeros((4, 3), np.int64)), "holds int64"),
        (saved(np.zeros(4, np.float32)), r"of shape \(4,\)"),
        (saved(np.zeros(4, [("a", "f4")])), "holds"),
    ],
)
def test_what_is_no_table_of_floats_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "v.npy").write_bytes(data)
    with pytest.raises(BadInput, match=says):
        vector_files.open_npy(tmp_path / "v.npy")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("ids.csv", b"caption\nx\n", "add a column sample_id or uri"),
        ("ids.csv", b"\xff\xfe\x00", "ids.csv"),
        ("ids.parquet", b"PAR1 not", "cannot be read"),
        ("ids.txt", b"\xff\xff", "cannot be read"),
        ("ids.pkl", b"", "is of no kind that dipnet reads"),
        ("ids.csv", b"key\na\n", "has 4 rows and .* 1; they must be about the same images"),
    ],
)
def test_ids_that_cannot_be_used_are_named(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    np.save(tmp_path / "v.npy", ROWS)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput, match=says):
        vector_files.of_files(tmp_path / "v.npy", tmp_path / name)


def test_a_folder_that_is_not_whole_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no folder"):
        vector_files.of_folder(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"holds no img_emb/img_emb_N\.npy"):
        vector_files.of_folder(tmp_path)
    part(tmp_path, "0", ROWS, key=list("abcd"))
    part(tmp_path, "1", np.zeros((1, 5), np.float32), key=["e"])
    with pytest.raises(BadInput, match="vectors of 3 and 5 dimensions; import them apart"):
        vector_files.of_folder(tmp_path)
    (tmp_path / "metadata" / "metadata_1.parquet").unlink()
    with pytest.raises(BadInput, match=r"img_emb_1.npy' has no metadata_1.parquet"):
        vector_files.of_folder(tmp_path)
