"""`dipnet predictions import`: tables for people, one JSON for scripts, and exit codes."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import cli
from models.learning import Scenario
from storage import tables
from storage.stores import open_stores


@pytest.fixture
def scenario() -> None:
    """Three samples under the name dev."""
    listing = {"sample_id": list("abc"), "class_name": ["x", "y", "x"], "uri": list("abc"), "shard_id": [1, 1, 1]}
    with open_stores() as stores:
        sha256 = stores.objects.write("dev.parquet", tables.to_bytes(pa.table(listing)))
        stores.db.add(Scenario(name="dev", listing_key="dev.parquet", listing_sha256=sha256, samples=3))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["dipnet", "predictions", "import", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_a_sound_file_is_taken(
    scenario: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"sample_id": list("cab"), "class": ["x", "x", "y"]}), tmp_path / "p.parquet")
    arguments = [str(tmp_path / "p.parquet"), "--model", "m", "--scenario", "dev"]
    assert run(monkeypatch, *arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["stored"], found["version"], found["scenarios"]) == (True, 1, {"dev@1": 3})
    assert run(monkeypatch, *arguments) == 0
    assert "reused" in capsys.readouterr().out


def test_a_file_that_is_not_sound_is_told_by_kind_and_exits_2(
    scenario: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "p.csv").write_text("sample_id,p:x,p:y\na,0.9,0.9\nb,,1\nzz,1,0\n")
    arguments = [str(tmp_path / "p.csv"), "--model", "m", "--scenario", "dev"]
    assert run(monkeypatch, *arguments, "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == 2
    assert {problem["kind"]: problem["rows"] for problem in found["problems"]} == {
        "missing": 1,
        "extra": 1,
        "NaN or empty probability": 1,
        "sum is not 1": 1,
    }
    assert run(monkeypatch, *arguments) == 2
    told = capsys.readouterr()
    assert "missing" in told.out
    assert "error:" in told.err
