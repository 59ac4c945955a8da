"""Vectors in files from outside: npy and what its rows are about, alone or in clip-retrieval's layout. Nothing is believed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.errors import BadInput

VECTORS, METADATA = "img_emb", "metadata"  # folders, and what files begin with
PART = re.compile(r"img_emb_(\d{1,18})\.npy")
WIDEST = 65_536
HEX = re.compile(r"[0-9a-f]{64}")
# What may say which image a row is about, the surest first. img2dataset's sha256 is of the bytes before they were resized.
COLUMNS = ("sample_id", "uri", "image_path", "key", "file_name", "path", "url", "sha256")


class Part(NamedTuple):
    """Vectors, and a column of names for each row."""

    vectors: NDArray[Any]  # (n, dim) of floats, mapped
    names: pa.Table  # (n,) columns of text


def of_folder(folder: Path) -> list[Part]:
    """clip-retrieval's layout: img_emb/img_emb_N.npy and metadata/metadata_N.parquet, or all in one folder."""
    if not folder.is_dir():
        raise BadInput(f"there is no folder '{folder}'; name the one that holds {VECTORS}/ and {METADATA}/")
    beside = folder / VECTORS
    inside = beside if beside.is_dir() else folder
    numbers = {int(found[1]): path for path in inside.iterdir() if (found := PART.fullmatch(path.name))}
    if not numbers:
        raise BadInput(
            f"'{folder}' holds no {VECTORS}/{VECTORS}_N.npy; name clip-retrieval's output folder, or give one file with "
            "--vectors FILE.npy --ids FILE"
        )
    known = {
        int(found[1]): path
        for place in (folder / METADATA, folder)
        if place.is_dir()
        for path in place.iterdir()
        if (found := re.fullmatch(rf"{METADATA}_(\d{{1,18}})\.parquet", path.name))
    }
    if lonely := sorted(numbers.keys() - known.keys()):
        raise BadInput(
            f"'{numbers[lonely[0]]}' has no {METADATA}_{lonely[0]}.parquet, so that nothing says what its rows are about"
        )
    return of_one_kind([of_files(path, known[number]) for number, path in sorted(numbers.items())], source=str(folder))


def of_files(vectors: Path, ids: Path) -> Part:
    """A file of vectors, and one that says what its rows are about."""
    found, names = open_npy(vectors), read_names(ids)
    if len(found) != names.num_rows:
        raise BadInput(
            f"'{vectors}' has {len(found):,} rows and '{ids}' {names.num_rows:,}; they must be about the same images, in "
            "the same order"
        )
    return Part(found, names)


def of_one_kind(parts: Sequence[Part], *, source: str) -> list[Part]:
    """The parts. Raises BadInput for vectors of different lengths, which no one encoder makes."""
    dims = sorted({part.vectors.shape[1] for part in parts})
    if len(dims) > 1:
        raise BadInput(f"'{source}' holds vectors of {' and '.join(map(str, dims))} dimensions; import them apart")
    return list(parts)


def open_npy(path: Path) -> NDArray[Any]:
    """A table of floats (n, dim), mapped: its rows are read when they are asked for. Raises BadInput for anything else."""
    if not path.is_file():
        raise BadInput(f"there is no file '{path}'; give an .npy file with a row an image")
    try:
        with path.open("rb") as handle:
            shape, kind = _header(handle)
        if len(shape) != 2 or kind.kind != "f" or kind.itemsize not in (2, 4, 8) or not 1 <= shape[1] <= WIDEST:
            raise BadInput(
                f"'{path}' holds {kind} of shape {shape}; give floats, a row an image, of at most {WIDEST:,} columns"
            )
        if not shape[0]:
            return np.empty(shape, kind)
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return found
    except (ValueError, OSError, TypeError, OverflowError, SyntaxError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BadInput(f"'{path}' cannot be read as npy ({reason}); write it with numpy.save") from None


def _header(handle: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and kind, as the first bytes say; numpy's own reader, which evaluates literals alone."""
    npy: Any = np.lib.format
    read = npy.read_array_header_1_0 if npy.read_magic(handle) == (1, 0) else npy.read_array_header_2_0
    shape, _, kind = read(handle)
    return shape, kind


def read_names(path: Path) -> pa.Table:
    """The columns of a file that may say what each row is about, as text ('': nothing). Raises BadInput without any."""
    if not path.is_file():
        raise BadInput(f"there is no file '{path}'; give one that says what each row is about")
    readers = {".parquet": _of_parquet, ".csv": _of_csv, ".txt": _of_text}
    if path.suffix.lower() not in readers:
        raise BadInput(f"'{path}' is of no kind that dipnet reads; give {', '.join(readers)}")
    with _speaking_plainly(path):
        found = readers[path.suffix.lower()](path)
    if not found.num_columns:
        raise BadInput(f"'{path}' does not say what its rows are about; add a column {' or '.join(COLUMNS)}")
    return found


def _of_parquet(path: Path) -> pa.Table:
    with pq.ParquetFile(path) as stored:
        there = stored.schema_arrow.names
        columns = [name for name in COLUMNS if there.count(name) == 1]
        return _as_texts(stored.read(columns=columns)) if columns else pa.table({})


def _of_csv(path: Path) -> pa.Table:
    with pa.csv.open_csv(path) as reader:
        columns = [name for name in COLUMNS if name in reader.schema.names]
    kinds = {name: pa.string() for name in columns}  # a key such as 000012 is no number
    options = pa.csv.ConvertOptions(column_types=kinds, include_columns=columns)
    return _as_texts(pa.csv.read_csv(path, convert_options=options)) if columns else pa.table({})


def _of_text(path: Path) -> pa.Table:
    lines = path.read_text(encoding="utf-8").splitlines()
    hashes = bool(lines) and all(HEX.fullmatch(line) for line in lines)
    return pa.table({"sample_id" if hashes else "key": pa.array(lines, pa.string())})


def _as_texts(table: pa.Table) -> pa.Table:
    return pa.table(
        {name: pc.fill_null(pc.cast(_plain(table.column(name)), pa.string()), "") for name in table.column_names}
    )


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.cast(column, column.type.value_type) if pa.types.is_dictionary(column.type) else column


@contextmanager
def _speaking_plainly(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise BadInput(f"'{path}' cannot be read ({reason}); write it anew") from None
