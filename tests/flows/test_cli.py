"""The command: bad input is one line with the thing and the next action, an exit code, no traceback, nothing half-done."""

import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from flows import cli, console
from storage.database import open_engine

Draw = Callable[..., Path]


def dipnet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run the command in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["dipnet", *map(str, words)])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("COLUMNS", "500")
    return lambda *words: dipnet(monkeypatch, capsys, *words)


@pytest.fixture
def world(draw: Draw, run: Callable[..., tuple[int, str, str]]) -> None:
    for seed, (name, split) in enumerate(
        [("train", "train"), ("dev", "development"), ("held", "holdout"), ("pool", "")]
    ):
        options = ["--split", split, "--labels", "class_name"] if split else []
        assert run("corpus", "add", name, draw(name, 40, seed=seed), *options)[0] == 0
    assert run("embed", "train", "dev", "held", "pool")[0] == 0


def test_a_newcomer_gets_help(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "dipnet demo" in out
    assert "corpus add" in out
    for words in (["campaign", "run"], ["corpus", "add"], ["train"], ["demo"], ["labels", "sync"], ["issue", "add"]):
        code, out, _ = run(*words, "--help")
        assert code == 0
        assert "--json" in out


def test_the_whole_loop_by_hand(
    world: None, run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(*words: object) -> object:
        code, out, err = run(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    assert [row["name"] for row in found("corpus", "list")] == ["dev", "held", "pool", "train"]
    assert found("corpus", "show", "pool")["columns"][:4] == ["key", "etag", "bytes", "folder"]
    assert found("corpus", "show", "pool", "--quarantine") == []
    assert len(found("search", "pool", "--text", "a bag", "--top", 5)) == 5
    assert found("train", "base", "train")["samples"] == 40
    assert (
        found("evaluate", "base", "--scenario", "light", "--corpus", "dev", "--where", "tone = 'light'")["samples"]
        == 20
    )
    found("issue", "new", "light-bar", "--class", "bar", "--where", "tone = 'light'")
    found("issue", "add", "light-bar", tmp_path / "images" / "dev" / "0003.png")
    found("issue", "add", "light-bar", tmp_path / "images" / "dev" / "0000.png", "--negative")
    assert found("issue", "list")[0]["version"] == 2
    assert found("issue", "show", "light-bar")["negative"] == 1
    (tmp_path / "truth.csv").write_text("sample_id,class_name\n")
    monkeypatch.setenv("DIPNET_ORACLE_TRUTH", str(tmp_path / "truth.csv"))
    sent = found("campaign", "run", "c", "--issue", "light-bar", "--corpus", "pool", "--budget", 1, "--model", "base")
    assert sent["sent"] == 1
    assert found("labels", "sync")[0]["states"] == {"skipped": 1}
    assert found("campaign", "list")[0]["state"] == "labelled"
    assert found("campaign", "show", "c")[0]["scored_by"] == "probe-1"
    assert found("campaign", "show", "c", "--bought")["states"] == {"skipped": 1}
    assert "too few" in found("issue", "check", "light-bar")["says"] or found("issue", "check", "light-bar")["judged"]
    shown = sample_ids(tmp_path)[0]
    assert found("sample", "show", shown[:12])["candidate_in"][0]["campaign"] == "c"
    gate = found("train", "next", "train", "--campaign", "c", "--compare-with", "base", "--issue", "light-bar")["gate"]
    assert gate in ("pass", "fail", "inconclusive")
    rows = found("compare", "base", "next", "--scenario", "all-holdout", "--resamples", 200)
    assert {"before", "after", "delta", "low", "high"} < set(rows[0])
    assert [row["ok"] for row in found("doctor")] == [True, True, True, None, True, None]


def test_a_campaign_by_hand(
    world: None, run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(*words: object) -> object:
        code, out, err = run(*words, "--json")
        assert code == 0, err
        return json.loads(out, parse_constant=pytest.fail)

    (tmp_path / "truth.csv").write_text("sample_id,class_name\n")
    monkeypatch.setenv("DIPNET_ORACLE_TRUTH", str(tmp_path / "truth.csv"))
    found("issue", "new", "light-bar", "--class", "bar")
    found("issue", "add", "light-bar", *[tmp_path / "images" / "dev" / f"{number:04d}.png" for number in (3, 7, 11)])
    common = ["campaign", "run", "c", "--issue", "light-bar", "--corpus", "pool", "--class", "bar", "--class", "square"]
    common += ["--set", "near_duplicate_cosine=1", "--set", "leak_cosine=1"]
    dry = found(*common, "--budget", 8, "--rounds", 2, "--dry-run", "--sheet", tmp_path / "sheet.png")
    assert dry["status"].startswith("dry run")
    assert (tmp_path / "sheet.png").is_file()
    assert found("campaign", "list") == []
    mined = found(*common, "--budget", 8, "--rounds", 2, "--no-route")
    assert mined["candidates"] == 4
    shown = found("campaign", "show", "c")
    assert [row["rank"] for row in shown] == [1, 2, 3, 4]
    found("campaign", "accept", "c", sample_ids(tmp_path)[0])
    found("campaign", "discard", "c", sample_ids(tmp_path)[1])
    assert found(*common, "--budget", 8, "--rounds", 2)["sent"] == 3
    found("labels", "sync")
    assert [row["status"] for row in found("campaign", "continue")] == ["round 2 of 2 waits for labels"]
    assert found("campaign", "progress", "c")["state"] == "active"
    assert found("campaign", "stop", "c", "--because", "enough")["state"] == "stopped"
    assert found("campaign", "resume", "c")["state"] == "active"
    assert found("campaign", "export", tmp_path / "out.npz")["campaigns"] == ["c"]
    assert {"budget", "max_cost_per_hit"} < {row["name"] for row in found("campaign", "settings")}
    assert found("index", "pool")["vectors"] == 40
    assert (
        found("search", "pool", "--text", "a bag")[0]["cosine"]
        == found("search", "pool", "--text", "a bag", "--exact")[0]["cosine"]
    )
    for words, says in (
        (["campaign", "collect", tmp_path / "truth.csv"], "is no file of dipnet's"),
        (["campaign", "collect", tmp_path / "truth.csv", "--send"], "--send needs --apply"),
        ([*common, "--set", "colour=red"], "dipnet campaign settings"),
        ([*common, "--set", "diversity=7"], "diversity"),
        ([*common, "--strategy", "text"], "text"),
        ([*common, "--since", "soon", "--time-column", "tone"], "is no time"),
        ([*common, "--where", "nothing = 1"], "cannot be used"),
        (["campaign", "discard", "c", "ab"], "names none of the candidates"),
        (["campaign", "progress", "x"], "there is no campaign 'x'"),
    ):
        code, _, err = run(*words)
        assert code == 2, words
        assert says in err
        assert len(err.strip().splitlines()) == 1


def sample_ids(folder: Path) -> list[str]:
    """Ids of the first run's candidates, best first."""
    with sqlite3.connect(folder / "root" / "dipnet.db") as db:
        return [name for (name,) in db.execute("SELECT sample_id FROM candidate ORDER BY run_id, rank")]


def test_tables_are_for_people(world: None, run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("corpus", "list")
    assert code == 0
    assert "40" in out
    assert "pool" in out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["corpus", "add", "x", "nowhere"], 2, "nowhere' does not exist; give the folder"),
        (["corpus", "add", "x", "empty"], 2, "no images under"),
        (["corpus", "add", "Bad Name", "empty"], 2, "corpus"),
        (["corpus", "add", "x", "empty", "--split", "test"], 2, "split"),
        (["corpus", "show", "x"], 2, "there is no corpus 'x'"),
        (["embed", "x"], 2, "there is no corpus 'x'"),
        (["issue", "show", "x"], 2, "there is no issue 'x'"),
        (["campaign", "show", "x"], 2, "there is no campaign 'x'"),
        (["campaign", "run", "c", "--issue", "x", "--corpus", "y", "--sheet", "x.png"], 2, "--sheet needs --dry-run"),
        (["campaign", "run", "c", "--issue", "x", "--corpus", "y", "--budget", "0"], 2, "budget"),
        (["train", "m", "x"], 2, "there is no corpus 'x'"),
        (["compare", "a", "b", "--scenario", "s"], 2, "there is no model 'a'"),
        (["labels", "sync", "x"], 2, "there is no campaign 'x'"),
        (["search", "x", "--text", "t"], 2, "there is no corpus 'x'"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, words: list[str], code: int, says: str
) -> None:
    (tmp_path / "empty").mkdir()
    found, _, err = run(*words)
    assert found == code
    assert says in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert run("corpus", "list", "--json")[1].strip() == "[]"


def test_an_error_is_json_where_json_was_asked_for(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("issue", "show", "x", "--json")
    assert json.loads(out) == {
        "error": "there is no issue 'x' (known: none yet); open it with: dipnet issue new x --class CLASS",
        "exit_code": code,
    }


def test_an_unknown_encoder_is_one_line(draw: Draw, run: Callable[..., tuple[int, str, str]]) -> None:
    run("corpus", "add", "pool", draw("pool", 4))
    code, _, err = run("embed", "pool", "--encoder", "ViT-Z-99/openai")
    assert code == 2
    assert "unknown encoder 'ViT-Z-99/openai'" in err


def test_a_budget_above_the_pool_and_an_issue_without_exemplars(
    world: None, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    run("issue", "new", "i", "--class", "bar")
    words = ["campaign", "run", "c", "--issue", "i", "--corpus", "pool", "--budget", "41"]
    assert "issue 'i' has no exemplars" in run(*words)[2]
    run("issue", "add", "i", tmp_path / "images" / "dev" / "0003.png")
    assert "a budget of 41 is above the pool of 40" in run(*words)[2]
    assert run("campaign", "list", "--json")[1].strip() == "[]"


def test_a_text_file_called_jpg_is_no_exemplar(
    world: None, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    run("issue", "new", "i", "--class", "bar")
    (tmp_path / "notes.jpg").write_text("remember the milk")
    code, _, err = run("issue", "add", "i", tmp_path / "notes.jpg")
    assert code == 2
    assert "notes.jpg' is no image that dipnet can read (not an image)" in err


def test_a_labeller_that_is_down_or_not_configured_leaves_a_mined_run(
    world: None, run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("issue", "new", "i", "--class", "bar")
    run("issue", "add", "i", tmp_path / "images" / "dev" / "0003.png")
    words = ["campaign", "run", "c", "--issue", "i", "--corpus", "pool", "--budget", "5"]
    monkeypatch.setenv("DIPNET_LABELER", "label-studio")
    code, _, err = run(*words)
    assert code == 2
    assert "DIPNET_LABEL_STUDIO_URL" in err
    monkeypatch.setattr("storage.labelstudio_connection.time.sleep", lambda _: None)  # between attempts
    monkeypatch.setenv("DIPNET_LABEL_STUDIO_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("DIPNET_LABEL_STUDIO_TOKEN", "0" * 40)
    code, _, err = run(*words)
    assert code == 5
    assert "Label Studio at http://127.0.0.1:9 does not answer" in err
    run_row = json.loads(run("campaign", "list", "--json")[1])[0]
    assert (run_row["state"], run_row["requests"]) == ("mined", {})


def test_a_database_from_a_newer_version_is_refused(house: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    engine = open_engine(f"sqlite:///{house / 'dipnet.db'}")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    code, _, err = run("corpus", "list")
    assert code == 3
    assert "newer dipnet" in err


def test_a_misspelt_setting_stops_every_command(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPNET_ENCODRE", "x")
    code, _, err = run("corpus", "list")
    assert code == 2
    assert "DIPNET_ENCODRE" in err


def test_a_record_within_a_record_reads_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    said = {"found": {"adequacy": {"auc": 0.91234, "verdict": "good"}, "answers": 0}, "excluded": {"too low": 3}}
    console.show(said, as_json=False)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == ["found: adequacy auc 0.9123, verdict good", "found: answers 0", "excluded 3 too low"]
