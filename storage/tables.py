"""Columnar files: Parquet to and from bytes, image metadata, and read-only SQL over them."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from models.errors import BadInput
from storage.objects import ObjectStore, verified

FILE_NAME = "file_name"
BOX = ("box_x", "box_y", "box_width", "box_height")
RESERVED = frozenset(
    {"key", "etag", "bytes", "folder", "member_object", "member_offset", *BOX, "uri", "sample_id", "shard_id", "row"}
)
ELSEWHERE = frozenset({"current_setting", "getenv", "getvariable", "nextval", "currval", "query", "query_table"})


def to_bytes(table: pa.Table) -> bytes:
    """The table as Parquet; the same table gives the same bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def from_bytes(data: bytes) -> pa.Table:
    """The table in Parquet bytes."""
    return pq.read_table(pa.BufferReader(data))


def read(store: ObjectStore, key: str, sha256: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in an object of ours, or these columns of it. Raises CorruptData when it is not what was written.

    What was made before 0.4 has no checksum ('') and is not checked.
    """
    data = verified(store, key, sha256) if sha256 else store.read(key)
    return pq.read_table(pa.BufferReader(data), columns=None if columns is None else list(columns))


def columns_of(data: bytes, names: Sequence[str]) -> pa.Table:
    """Only these columns of the table in Parquet bytes."""
    return pq.read_table(pa.BufferReader(data), columns=list(names))


def columns_there(data: bytes, names: Sequence[str]) -> pa.Table:
    """Those of these columns that the table in Parquet bytes has."""
    file = open_parquet(data)
    return file.read(columns=[name for name in names if name in file.schema_arrow.names])


def open_parquet(source: Path | bytes) -> pq.ParquetFile:
    """Parquet whose columns are read when they are asked for."""
    return pq.ParquetFile(pa.BufferReader(source) if isinstance(source, bytes) else source)


def schema_of(data: bytes) -> pa.Schema:
    """Names and types of the columns in Parquet bytes; no row is read."""
    return pq.read_schema(pa.BufferReader(data))


def read_metadata(data: bytes, *, source: str) -> pa.Table:
    """A metadata.csv with a `file_name` column (the image-folder convention). Raises BadInput, naming `source`."""
    table = read_csv(data, source=source, texts=(FILE_NAME,))
    require_metadata(table, source=source)
    return table


def read_csv(data: bytes, *, source: str, texts: Sequence[str]) -> pa.Table:
    """A CSV's columns, those named in `texts` as text. Raises BadInput, naming `source`."""
    types = dict.fromkeys(texts, pa.string())
    try:
        table = _csv(data, types)
        # A column of nothing but what pyarrow takes for "no value", such as n/a, is text: somebody wrote it.
        if nothing := {field.name: pa.string() for field in table.schema if pa.types.is_null(field.type)}:
            table = _csv(data, types | nothing)
    except pa.ArrowInvalid as error:
        raise BadInput(f"'{source}' is not a CSV table ({error}); mend or remove it") from None
    if twice := sorted(name for name, count in Counter(table.column_names).items() if count > 1):
        raise BadInput(f"'{source}' has two columns {twice[0]}; rename one")
    return table


def _csv(data: bytes, types: dict[str, pa.DataType]) -> pa.Table:
    return pa.csv.read_csv(pa.BufferReader(data), convert_options=pa.csv.ConvertOptions(column_types=types))


def require_metadata(table: pa.Table, *, source: str) -> None:
    """Raises BadInput for a table that does not name each file once, or that uses a column of ours."""
    if FILE_NAME not in table.column_names:
        raise BadInput(f"'{source}' has no column file_name; add one with each image's path below the prefix")
    require_own_columns(table, source=source)
    if pc.count_distinct(table.column(FILE_NAME), mode="all").as_py() != table.num_rows:
        raise BadInput(f"'{source}' names a file twice; keep one line a file")


def require_own_columns(table: pa.Table, *, source: str) -> None:
    """Raises BadInput for a table that uses a column of ours."""
    if clash := sorted(RESERVED & set(table.column_names)):
        raise BadInput(f"'{source}' uses the reserved column {', '.join(clash)}; rename it")


def where(table: pa.Table, condition: str) -> pa.Table:
    """Rows for which an SQL condition over the columns holds, in their order. Raises BadInput when it is no condition."""
    return table.take(pa.array(matching(table, condition), pa.int64())) if condition.strip() else table


def matching(table: pa.Table, condition: str) -> list[int]:
    """Numbers of the rows for which an SQL condition over the columns holds. Raises BadInput when it is no condition.

    The condition comes from a person: the connection can read this table and nothing else, no file and no network. Times
    without an offset are UTC, whatever the machine's time zone.
    """
    numbered = table.append_column("__row", pa.array(range(table.num_rows), pa.int64()))
    with duckdb.connect(
        config={"enable_external_access": "false", "python_enable_replacements": "false"}
    ) as connection:
        connection.register("images", numbered)
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET lock_configuration = true")
        try:
            _require_expression(connection, condition)
            # On lines of its own, so that a comment in it ends with it.
            query = f"SELECT __row FROM images WHERE (\n{condition}\n) ORDER BY __row"  # noqa: S608
            return [row for (row,) in connection.execute(query).fetchall()]
        except (duckdb.Error, UnicodeError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(
                f"condition {condition!r} cannot be used ({reason}); columns: {', '.join(table.column_names)}"
            ) from None


def _require_expression(connection: duckdb.DuckDBPyConnection, condition: str) -> None:
    """Raises duckdb.Error or UnicodeError for what is no single expression, BadInput for one that looks beyond a row."""
    condition.encode()
    duckdb.SQLExpression(condition)
    (text,) = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT (\n{condition}\n)"]).fetchone() or ("{}",)
    for node in _nodes(json.loads(text)):
        if node.get("class") == "SUBQUERY":
            raise BadInput(f"condition {condition!r} holds a query of its own; write one over an image's columns alone")
        if node.get("class") == "FUNCTION" and node.get("function_name") in ELSEWHERE:
            raise BadInput(
                f"condition {condition!r} uses {node['function_name']}, which looks beyond the columns; leave it out"
            )


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of a parsed statement."""
    if isinstance(tree, dict):
        yield tree
    if isinstance(tree, dict | list):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _nodes(part)


def column(table: pa.Table, name: str, *, source: str) -> list[str]:
    """A column as text, '' for nulls. Raises BadInput when there is none of that name."""
    if name not in table.column_names:
        raise BadInput(f"{source} has no column '{name}'; columns there are: {', '.join(table.column_names)}")
    return ["" if value is None else str(value) for value in table.column(name).to_pylist()]


def concat(tables: Sequence[pa.Table]) -> pa.Table:
    """One table of all rows; columns that some lack are null there."""
    return pa.concat_tables(tables, promote_options="permissive")
