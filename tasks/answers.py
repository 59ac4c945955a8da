"""A file of predictions from outside: Parquet, CSV or JSONL, read a column at a time."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.errors import BadInput
from storage import tables
from tasks.compute import checking_predictions as checking
from tasks.trainers.protocol import PROBABILITY

KEYS = ("sample_id", "uri", "key", "file_name")
CLASSES = ("class_name", "predicted", "class")
SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")


class Samples(NamedTuple):
    """Samples that are asked for, and the names that a file may give them."""

    ids: list[str]  # (n,)
    uris: list[str]  # (n,)
    keys: list[str]  # (n,) file names below their corpus's prefix; empty where that is not known

    def named(self, column: str) -> list[str]:
        """How they are named in that column of a file."""
        return self.ids if column == "sample_id" else self.uris if column == "uri" else self.keys


class AnswerFile(NamedTuple):
    """An open file of predictions, and what its columns are."""

    source: str
    stored: pq.ParquetFile
    key: str  # one of KEYS
    answer: str  # one of CLASSES; empty: the file has probabilities alone
    shares: dict[str, str]  # column by class name
    unknown: list[str]  # columns p:CLASS of classes that are not known
    ignored: list[str]

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return int(self.stored.metadata.num_rows)

    def texts(self, column: str) -> pa.ChunkedArray:
        """A column (rows,) as text."""
        with _speaking_plainly(self.source):
            found = self.stored.read(columns=[column]).column(column)
            if pa.types.is_dictionary(found.type):
                found = pc.cast(found, found.type.value_type)
            if not (pa.types.is_string(found.type) or pa.types.is_large_string(found.type)):
                found = pc.cast(found, pa.string())
            return pc.cast(found, pa.string())

    def share(self, class_name: str) -> NDArray[np.float64]:
        """A class's probabilities (rows,); NaN where there is none."""
        with _speaking_plainly(self.source):
            column = self.shares[class_name]
            found = pc.cast(self.stored.read(columns=[column]).column(column), pa.float64())
            return np.asarray(found.to_numpy(), dtype=np.float64)


@contextmanager
def opened(path: Path, known: Sequence[str]) -> Iterator[AnswerFile]:
    """A file of predictions about classes of these names. Raises BadInput for what is none."""
    if path.suffix.lower() not in SUFFIXES:
        raise BadInput(f"'{path}' is of no kind that dipnet reads; give {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise BadInput(f"there is no file '{path}'; give one of predictions")
    with tempfile.TemporaryDirectory(prefix="dipnet-") as folder:
        with _speaking_plainly(str(path)):
            stored = tables.open_parquet(_as_parquet(path, Path(folder), known))
        try:
            yield _described(str(path), stored, known)
        finally:
            stored.close()


def _as_parquet(path: Path, folder: Path, known: Sequence[str]) -> Path:
    """The file itself, or a copy of its rows as Parquet."""
    if path.suffix.lower() == ".parquet":
        return path
    copy = folder / "copy.parquet"
    if path.suffix.lower() == ".csv":
        _convert_csv(path, copy, known)
    else:
        pq.write_table(pyarrow.json.read_json(path), copy)
    return copy


def _convert_csv(path: Path, copy: Path, known: Sequence[str]) -> None:
    """Some megabytes at a time: probabilities as numbers, all else as text."""
    with pa.csv.open_csv(path) as reader:
        names = reader.schema.names
    numbers = {name for name in names if name not in (*KEYS, *CLASSES) and _class_of(name, known) is not None}
    kinds = {name: pa.float64() if name in numbers else pa.string() for name in names}
    options = pa.csv.ConvertOptions(column_types=kinds)
    with pa.csv.open_csv(path, convert_options=options) as reader, pq.ParquetWriter(copy, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)


def _class_of(column: str, known: Sequence[str]) -> str | None:
    """The class whose probabilities a column seems to hold."""
    if column.startswith(PROBABILITY):
        return column.removeprefix(PROBABILITY)
    return column if column in known else None


def _described(source: str, stored: pq.ParquetFile, known: Sequence[str]) -> AnswerFile:
    names = stored.schema_arrow.names
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise BadInput(f"'{source}' has column '{twice[0]}' twice; keep one")
    key = next((name for name in KEYS if name in names), "")
    if not key:
        raise BadInput(f"'{source}' does not say which samples it is about; add a column {' or '.join(KEYS)}")
    answer = next((name for name in CLASSES if name in names), "")
    shares: dict[str, str] = {}
    unknown, ignored = [], []
    for name in names:
        class_name = None if name in (*KEYS, *CLASSES) else _class_of(name, known)
        if class_name is None:
            ignored += [name] if name not in (key, answer) else []
        elif class_name not in known:
            unknown.append(name)
        elif class_name in shares:
            raise BadInput(f"'{source}' has probabilities of '{class_name}' twice; keep one column of them")
        else:
            shares[class_name] = name
    if not answer and not shares:
        raise BadInput(
            f"'{source}' holds no answers; add a column {' or '.join(CLASSES)}, or probabilities in columns "
            f"{PROBABILITY}CLASS (classes: {', '.join(list(known)[:10])})"
        )
    return AnswerFile(source, stored, key, answer, shares, unknown, ignored)


def checked(file: AnswerFile, samples: Samples, known: Sequence[str]) -> checking.Taken:
    """What a file says about samples, and all that is wrong with it. Classes are places in `known`."""
    check = checking.Check(_places(file, samples), _said(file, known), samples=len(samples.ids))
    for class_name in file.shares:
        check.add(list(known).index(class_name), file.share(class_name))
    return check.finish()


def _places(file: AnswerFile, samples: Samples) -> NDArray[np.int64]:
    """Which sample each row is about, -1 for none of them. Raises BadInput when a name stands for two samples."""
    names = samples.named(file.key)
    if len(set(names)) != len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise BadInput(f"column '{file.key}' cannot tell the samples apart: '{twice}' is two of them; use sample_id")
    found = pc.index_in(file.texts(file.key), value_set=pa.array(names, pa.string()))
    return np.asarray(pc.fill_null(found, checking.EXTRA).to_numpy(), dtype=np.int64)


def _said(file: AnswerFile, known: Sequence[str]) -> NDArray[np.int64]:
    if not file.answer:
        return np.full(file.rows, checking.NOTHING, dtype=np.int64)
    names = file.texts(file.answer)
    empty = pc.fill_null(pc.equal(names, ""), fill_value=True)
    found = pc.index_in(names, value_set=pa.array(known, pa.string()))
    said = np.asarray(pc.fill_null(found, checking.UNKNOWN).to_numpy(), dtype=np.int64)
    return np.where(empty.to_numpy(), checking.NOTHING, said)


def table_of(
    file: AnswerFile, taken: checking.Taken, rows: NDArray[np.int64], known: Sequence[str], *, ids: Sequence[str]
) -> pa.Table:
    """Answers for some of the samples (places `rows`) as they are kept: sample_id, predicted, and p:CLASS each."""
    chosen, sums = taken.rows[rows], taken.sums[rows]
    columns: dict[str, pa.Array] = {
        "sample_id": pa.array([ids[row] for row in rows.tolist()], pa.string()),
        "predicted": pa.array(known, pa.string()).take(pa.array(taken.predicted[rows])),
    }
    for class_name in file.shares:
        columns[f"{PROBABILITY}{class_name}"] = pa.array((file.share(class_name)[chosen] / sums).astype(np.float32))
    return pa.table(columns)


@contextmanager
def _speaking_plainly(source: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise BadInput(f"'{source}' cannot be read as predictions ({reason}); write it anew") from None
