"""Metadata is checked, and a condition can look at the manifest and at nothing else."""

from pathlib import Path

import pyarrow as pa
import pytest

from models.errors import BadInput
from storage import tables

TABLE = pa.table({"sample_id": ["a", "b", "c"], "tone": ["light", "dark", None], "year": [2024, 2025, 2026]})


def test_a_table_survives_parquet_byte_for_byte() -> None:
    data = tables.to_bytes(TABLE)
    assert tables.from_bytes(data) == TABLE
    assert tables.to_bytes(tables.from_bytes(data)) == data


@pytest.mark.parametrize(
    ("condition", "ids"),
    [
        ("tone = 'light'", ["a"]),
        ("year >= 2025 AND tone IS NULL", ["c"]),
        ("\"tone\" IN ('light', 'dark')", ["a", "b"]),
        ("", ["a", "b", "c"]),
        ("false", []),
        ("tone = 'light' -- as it was named in 2024", ["a"]),
    ],
)
def test_a_condition_keeps_the_rows_it_holds_for(condition: str, ids: list[str]) -> None:
    assert tables.where(TABLE, condition).column("sample_id").to_pylist() == ids


@pytest.mark.parametrize(
    "condition",
    [
        "colour = 'red'",
        "tone =",
        "true); DROP TABLE images; SELECT (true",
        "sample_id IN (SELECT content FROM read_text('{file}'))",
        "exists(SELECT * FROM '{file}')",
        "false)) UNION ALL SELECT 99999 WHERE ((true",
        "(SELECT count(*) FROM duckdb_settings()) > 0",
        "(SELECT count(*) FROM query('select 1')) > 0",
        "current_setting('temp_directory') = ''",
        "true) LIMIT 1 --",
        "year > 2024, tone = 'light'",
        "tone = '\ud800'",
        "tone = ?",
    ],
)
def test_a_condition_that_is_wrong_or_looks_elsewhere_is_refused(condition: str, tmp_path: Path) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("content\na\n")
    with pytest.raises(BadInput):
        tables.where(TABLE, condition.replace("{file}", str(file)))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a,b\n1,2\n", "file_name"),
        ("file_name,key\nx,1\n", "reserved column key"),
        ("file_name,a\nx,1\nx,2\n", "names a file twice"),
        ("", "not a CSV table"),
    ],
)
def test_metadata_that_cannot_be_joined_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        tables.read_metadata(text.encode(), source="metadata.csv")


def test_a_missing_column_lists_those_there_are() -> None:
    with pytest.raises(BadInput, match="columns there are: sample_id, tone, year"):
        tables.column(TABLE, "colour", source="here")


def test_what_somebody_wrote_is_not_taken_for_nothing() -> None:
    found = tables.read_metadata(b"file_name,note,speed\na.jpg,n/a,3\nb.jpg,,NA\n", source="metadata.csv")
    assert found.column("note").to_pylist() == ["n/a", ""]
    assert found.column("speed").to_pylist() == [3, None]
