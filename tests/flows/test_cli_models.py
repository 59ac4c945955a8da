"""`dipnet train`, `gate`, `model`, `evaluate`, `compare`: exit codes for a CI, tables for a screen, input errors in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.test_cli import dipnet

Run = Callable[..., tuple[int, str, str]]
Draw = Callable[..., Path]
QUICK = ["--resamples", "200"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *words: dipnet(monkeypatch, capsys, *words)


@pytest.fixture
def world(draw: Draw, run: Run, tmp_path: Path) -> None:
    for seed, (name, split) in enumerate([("train", "train"), ("dev", "development"), ("held", "holdout")]):
        assert run("corpus", "add", name, draw(name, 32, seed=seed), "--split", split, "--labels", "class_name")[0] == 0
    assert run("embed", "train", "dev", "held")[0] == 0
    assert run("issue", "new", "light-bar", "--class", "bar", "--where", "tone = 'light'")[0] == 0


def found(run: Run, *words: object, code: int = 0) -> object:
    told, out, err = run(*words, "--json")
    assert told == code, err
    return json.loads(out, parse_constant=pytest.fail)


def test_the_champion_by_hand(world: None, run: Run) -> None:
    assert found(run, "train", "m", *QUICK)["champion"] == "m@1"
    assert found(run, "model", "champion")["because"] == "the first"
    trained = found(
        run, "train", "m", "--seed", 1, "--set", "regularisation=0.01", "--set", "overall_margin=0.5", *QUICK
    )
    assert (trained["model"], trained["compared_with"], trained["samples"]) == ("m@2", "m@1", 32)
    assert trained["gates"][0]["issue"] == ""
    assert found(run, "model", "promote", "m@2", "--because", "we like it")["champion"] == "m@2"
    assert [row["champion"] for row in found(run, "model", "list")] == ["★", ""]
    record = found(run, "model", "show", "champion")
    assert (record["model"], record["parameters"]["regularisation"], record["splits"]["train"]) == ("m@2", 0.01, 32)
    assert {row["scenario"] for row in record["evaluations"]} == {"dev", "held", "all-holdout"}
    assert found(run, "model", "undo")["champion"] == "m@1"
    history = found(run, "model", "history")
    assert [(row["model"], row["state"]) for row in history] == [("m@2", "undone"), ("m@1", "champion")]
    for words in (["list"], ["show", "m"], ["champion"], ["history"], ["settings"]):
        code, out, _ = run("model", *words)
        assert code == 0
        assert all(len(line) <= 100 for line in out.splitlines())
    code, out, _ = run("train", "m", *QUICK)
    assert code == 0
    assert "nothing changed since m@1" in out


@pytest.mark.parametrize(
    ("verdict", "require", "code"),
    [
        ("pass", None, 0),
        ("pass", "pass", 0),
        ("inconclusive", None, None),
        ("inconclusive", "pass", 1),
        ("inconclusive", "no-fail", 0),
        ("fail", "no-fail", 1),
        ("fail", None, 1),
    ],
)
def test_exit_codes_say_what_the_gate_says(
    world: None, run: Run, monkeypatch: pytest.MonkeyPatch, verdict: str, require: str | None, code: int | None
) -> None:
    from tasks.compute import gate

    real = gate.judge
    monkeypatch.setattr(gate, "judge", lambda *a, **k: real(*a, **k)._replace(verdict=verdict))
    asked = ["--require", require] if require else []
    run("train", "m", *QUICK)
    by_train = 0 if code is None else code  # without --require a training asks for no failure, a gate for a pass
    by_gate = 1 if code is None else code
    assert run("train", "m", "--seed", "1", *QUICK, *asked)[0] == by_train
    assert run("gate", "m@1", "m@2", *QUICK, *asked)[0] == by_gate
    assert found(run, "gate", "m@1", "m@2", "--issue", "light-bar", *QUICK, *asked, code=by_gate)["verdict"] == verdict
    assert found(run, "issue", "list")[0]["state"] == "triage"  # a question moves nothing


def test_a_gate_shows_what_it_looked_at_on_a_screen(world: None, run: Run) -> None:
    run("train", "m", *QUICK)
    run("train", "m", "--seed", "1", "--set", "kind=mlp", *QUICK)
    code, out, err = run(
        "gate", "m@1", "m@2", "--issue", "light-bar", "--margin", "0.5", "--set", "class_margin=0.5", *QUICK
    )
    assert code in (0, 1), err
    assert all(len(line) <= 100 for line in out.splitlines())
    told = " ".join(out.split())
    for part in ("target bar", "all", "class bar", "would decide", "margin", "gate 2:"):
        assert part in told, part
    findings = found(run, "gate", "m@1", "m@2", "--issue", "light-bar", "--margin", "0.5", *QUICK, code=code)[
        "findings"
    ]
    assert {row["role"] for row in findings} >= {"target", "overall", "class"}
    assert [row["margin"] for row in findings if row["role"] == "overall"] == [0.5]


def test_evaluations_and_comparisons_read_on_a_screen(world: None, run: Run) -> None:
    run("train", "m", *QUICK)
    run("train", "n", "--seed", "1", "--set", "regularisation=0.0001", *QUICK)
    for words in (
        ["evaluate", "m", "--scenario", "held"],
        ["evaluate", "m", "--scenario", "held", "--thresholds", "bar"],
        ["compare", "m", "n", "--scenario", "held", *QUICK],
        ["compare", "m", "n", "--scenario", "held", "--changes", *QUICK],
    ):
        code, out, err = run(*words)
        assert code == 0, err
        assert all(len(line) <= 100 for line in out.splitlines()), out
    rows = found(run, "compare", "m", "n", "--scenario", "held", *QUICK)
    sizes = [abs(row["delta"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert {"low", "high", "p", "q", "detectable"} < set(rows[0])
    sweep = found(run, "evaluate", "m", "--scenario", "held", "--thresholds", "bar")
    assert [row["recall"] for row in sweep] == sorted((row["recall"] for row in sweep), reverse=True)


def test_changes_name_the_images(world: None, run: Run) -> None:
    run("train", "m", *QUICK)
    run("train", "n", "--set", "regularisation=1e-9", "--compare-with", "none", *QUICK)
    rows = found(run, "compare", "m", "n", "--scenario", "held", "--changes", *QUICK)
    deltas = {
        (row["class"], row["metric"]): row for row in found(run, "compare", "m", "n", "--scenario", "held", *QUICK)
    }
    net = sum({"improved": 1, "worsened": -1}.get(row["change"], 0) for row in rows)
    assert deltas["all", "accuracy"]["delta"] == pytest.approx(net / 32)
    assert all(Path(row["image"]).is_file() for row in rows)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "m", "--trainer", "forest"], "there is no trainer 'forest'; choose one of head, finetune, external"),
        (["train", "m", "--set", "colour=red"], "is no NAME=VALUE of a setting; see: dipnet model settings"),
        (["train", "m", "--set", "epochs=3"], "is no NAME=VALUE of a setting"),  # of another trainer
        (["train", "m", "--set", "regularisation=0"], "regularisation must be above 0"),
        (["train", "m", "--set", "holdout=much"], "holdout must be a number (given: 'much')"),
        (["train", "m", "--set", "holdout=0.7", "--set", "development=0.4"], "leave nothing to train on"),
        (["train", "m", "--set", "kind=forest"], "kind must be 'logistic' or 'mlp'"),
        (["train", "m", "--trainer", "external"], "an external trainer needs a command or a function"),
        (["train", "m", "--trainer", "external", "--set", "command='"], "quote it as in a shell"),
        (["train", "Bad Name"], "model must be lower-case letters"),
        (["train", "m", "--compare-with", "x"], "there is no model 'x'"),
        (["train", "m", "--issue", "x"], "there is no issue 'x'"),
        (["train", "m", "--scenario", "x"], "there is no scenario 'x'"),
        (["gate", "a", "b"], "there is no model 'a'"),
        (["gate", "champion", "b"], "no model is champion yet"),
        (["model", "show", "x"], "there is no model 'x'"),
        (["model", "promote", "x"], "there is no model 'x'"),
        (["model", "champion"], "no model is champion yet"),
        (["model", "undo"], "nothing to undo"),
        (["evaluate", "m", "--scenario", "s", "--where", "a = 1"], "--where needs --corpus"),
        (["issue", "new", "Bad Name", "--class", "bar"], "issue must be lower-case letters"),
        (["issue", "new", "../up", "--class", "bar"], "issue must be lower-case letters"),
        (["issue", "new", "x", "--class", ""], "class_name must not be empty"),
        (["issue", "new", "x", "--class", "bar", "--where", "tone ="], "cannot be used"),
        (["issue", "new", "x", "--class", "bar", "--where", "shade = 'light'"], "cannot be used"),
    ],
)
def test_input_errors_are_one_line_in_plain_words(
    house: Path, draw: Draw, run: Run, words: list[str], says: str
) -> None:
    for name, split in (("train", "train"), ("held", "holdout")):
        run("corpus", "add", name, draw(name, 8), "--split", split, "--labels", "class_name")
    if "--compare-with" in words or "--issue" in words or "--scenario" in words:
        run("embed", "train", "held")
    code, _, err = run(*words)
    assert (code, len(err.strip().splitlines())) == (2, 1), err
    assert says in err
    assert "Input should" not in err and "Value error" not in err
    assert found(run, "model", "list") == []
    assert found(run, "issue", "list") == []


def test_a_model_is_not_judged_against_itself(world: None, run: Run) -> None:
    run("train", "m", *QUICK)
    code, _, err = run("gate", "m", "champion", *QUICK)
    assert code == 2
    assert "are both m@1; a model is not compared with itself" in err


def test_an_exemplar_that_says_the_contrary_is_told_as_changed(world: None, run: Run, tmp_path: Path) -> None:
    image, other = (tmp_path / "images" / "dev" / f"{number:04d}.png" for number in (3, 7))
    assert found(run, "issue", "add", "light-bar", image) == {"issue": "light-bar", "added": 1, "version": 1}
    told = found(run, "issue", "add", "light-bar", image, other, "--negative")
    assert told == {"issue": "light-bar", "added": 1, "changed": "1 from positive to negative", "version": 2}
    told = found(run, "issue", "add", "light-bar", other, "--negative")
    assert told == {"issue": "light-bar", "added": 0, "there_already": 1, "version": 2}


def test_a_slice_is_checked_against_the_columns_that_there_are(house: Path, run: Run, draw: Draw) -> None:
    run("corpus", "add", "pool", draw("pool", 8))
    assert (
        run("issue", "new", "early", "--class", "bar", "--where", "shade = 'light'")[0] == 0
    )  # nothing to check on yet
    run("corpus", "add", "dev", draw("dev", 8), "--split", "development", "--labels", "class_name")
    assert "tone" in run("issue", "new", "late", "--class", "bar", "--where", "shade = 'light'")[2]
    assert run("issue", "new", "late", "--class", "bar", "--where", "tone = 'light'")[0] == 0
