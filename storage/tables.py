"""Columnar files: Parquet to and from bytes, image metadata, and read-only SQL over them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from models.errors import BadInput

RESERVED = frozenset({"key", "etag", "bytes", "folder", "uri", "sample_id", "shard_id", "row"})


def to_bytes(table: pa.Table) -> bytes:
    """The table as Parquet; the same table gives the same bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def from_bytes(data: bytes) -> pa.Table:
    """The table in Parquet bytes."""
    return pq.read_table(pa.BufferReader(data))


def read_metadata(data: bytes, *, source: str) -> pa.Table:
    """A metadata.csv with a `file_name` column (the image-folder convention). Raises BadInput, naming `source`."""
    try:
        table = pa.csv.read_csv(pa.BufferReader(data))
    except pa.ArrowInvalid as error:
        raise BadInput(f"'{source}' is not a CSV table ({error}); mend or remove it") from None
    if "file_name" not in table.column_names:
        raise BadInput(f"'{source}' has no column file_name; add one with each image's path below the prefix")
    if clash := sorted(RESERVED & set(table.column_names)):
        raise BadInput(f"'{source}' uses the reserved column {', '.join(clash)}; rename it")
    names = table.column("file_name").to_pylist()
    if len(set(names)) != len(names):
        raise BadInput(f"'{source}' names a file twice; keep one line a file")
    return table


def where(table: pa.Table, condition: str) -> pa.Table:
    """Rows for which an SQL condition over the columns holds, in their order. Raises BadInput when it is no condition."""
    return table.take(pa.array(matching(table, condition), pa.int64())) if condition.strip() else table


def matching(table: pa.Table, condition: str) -> list[int]:
    """Numbers of the rows for which an SQL condition over the columns holds. Raises BadInput when it is no condition.

    The condition comes from a person: the connection can read this table and nothing else, no file and no network.
    """
    numbered = table.append_column("__row", pa.array(range(table.num_rows), pa.int64()))
    with duckdb.connect(
        config={"enable_external_access": "false", "python_enable_replacements": "false"}
    ) as connection:
        connection.register("images", numbered)
        connection.execute("SET lock_configuration = true")
        try:
            statements = connection.extract_statements(f"SELECT __row FROM images WHERE ({condition}) ORDER BY __row")  # noqa: S608
            if len(statements) != 1:
                raise BadInput(f"condition '{condition}' is more than one statement; write one condition")
            return [row for (row,) in connection.execute(statements[0]).fetchall()]
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise BadInput(
                f"condition '{condition}' cannot be used ({reason}); columns: {', '.join(table.column_names)}"
            ) from None


def column(table: pa.Table, name: str, *, source: str) -> list[str]:
    """A column as text, '' for nulls. Raises BadInput when there is none of that name."""
    if name not in table.column_names:
        raise BadInput(f"{source} has no column '{name}'; columns there are: {', '.join(table.column_names)}")
    return ["" if value is None else str(value) for value in table.column(name).to_pylist()]


def concat(tables: Sequence[pa.Table]) -> pa.Table:
    """One table of all rows; columns that some lack are null there."""
    return pa.concat_tables(tables, promote_options="permissive")
