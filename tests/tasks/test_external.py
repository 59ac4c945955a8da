"""The team's own training: run apart, told what to do, stopped in time, and believed only as far as it can be checked."""

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.cli_settings import fields_of
from models.errors import BadInput
from models.learning import ModelVersion, TrainingRun
from models.outcomes import Fitted
from models.retraining import ExternalOptions, RetrainPlan, TrainerPlan
from storage import runs
from storage.stores import open_stores
from tasks import datasets, evaluating, learning, scenarios
from tasks.predicting import predictions_of
from tasks.trainers import external, running

REPOSITORY = Path(running.__file__).parents[2]
HEAD = """
import json, os, pathlib, sys, time
import pyarrow as pa, pyarrow.parquet as pq

def train(dataset, predictions, seed):
    rows = pq.read_table(dataset / "samples.parquet").to_pylist()
    ids = pq.read_table(dataset / "evaluate.parquet").column("sample_id").to_pylist()
    classes = json.loads((dataset / "classes.json").read_text())
    assert {row["class_name"] for row in rows if row["split"] == "holdout"} == {""}
    print("trained on", sum(row["split"] == "train" for row in rows), "with", seed, flush=True)
    answers = {"sample_id": ids, "class_name": [classes[0]] * len(ids)}
"""
GOOD = (
    HEAD
    + """
    answers |= {f"p:{name}": [1.0 - place] * len(ids) for place, name in enumerate(classes)}
    pq.write_table(pa.table(answers), predictions)
"""
)
MAIN = """
if __name__ == "__main__":
    train(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]))
"""


def plan(program: str, *, minutes: float = 1.0, seed: int = 7, **options: Any) -> RetrainPlan:
    Path("train.py").write_text(program + MAIN)
    if not options:
        options = {"command": [sys.executable, "train.py", "{dataset}", "{predictions}", "{seed}"]}
    trainer = TrainerPlan(name="external", external=ExternalOptions(minutes=minutes, **options))
    return RetrainPlan(model="theirs", corpora=["train"], trainer=trainer, seed=seed)


def fit(wanted: RetrainPlan) -> Fitted:
    return learning.fit(datasets.freeze_dataset(wanted), wanted)


def kept(name: str = "theirs") -> tuple[ModelVersion, TrainingRun]:
    with open_stores() as stores:
        model = runs.get_model(stores.db, name=name)
        return model, runs.training_of(stores.db, model=model)


@pytest.mark.parametrize("way", ["command", "function"])
def test_its_answers_are_evaluated_like_any_others_and_it_runs_once(world: Path, house: Path, way: str) -> None:
    wanted = plan(GOOD) if way == "command" else plan(GOOD, function="train:train")
    first = fit(wanted)
    assert (first.reused, first.version) == (False, 1)
    assert fit(wanted).reused
    model, training = kept()
    assert (model.weights_key, training.parameters["answered"], training.parameters["unanswered"]) == ("", 48, 0)
    assert (house / training.log_key).read_text() == "trained on 40 with 7\n"
    scenarios.freeze_scenario("dev", ["dev"])
    evaluating.evaluate("theirs", "dev")
    with open_stores() as stores:
        scenario = runs.get_scenario(stores.db, name="dev")
        found = predictions_of(stores, model, scenario)
        inference = runs.find_inference(stores.db, model_id=model.id or 0, scenario_id=scenario.id or 0)
        assert inference is not None
        assert inference.source == "external"
    assert set(found.predicted.tolist()) == {0}
    share = found.read_probability("bar")
    assert share is not None
    assert share.min() == 1.0
    edited = plan(GOOD + "\n# edited\n") if way == "command" else plan(GOOD + "\n# edited\n", function="train:train")
    assert fit(edited).version == 2


WAYS: list[tuple[dict[str, Any], str]] = [
    ({"function": "team:train"}, "team/__init__.py"),
    ({"function": "team.fit:train"}, "team/fit.py"),
    ({"function": "team.fit:train"}, "team/parts/loss.py"),
    ({"command": [sys.executable, "-m", "team.fit", "{dataset}", "{predictions}", "{seed}"]}, "team/parts/loss.py"),
    ({"command": [sys.executable, "-m", "team", "{dataset}", "{predictions}", "{seed}"]}, "team/__main__.py"),
    ({"command": [sys.executable, "-m", "tool", "{dataset}", "{predictions}", "{seed}"]}, "tool.py"),
    ({"command": [sys.executable, "tool.py", "{dataset}", "{predictions}", "{seed}", "--o=o.yaml"]}, "o.yaml"),
]


@pytest.mark.parametrize(("options", "edited"), WAYS)
def test_an_edited_program_is_another_one_however_it_is_named(
    world: Path, options: dict[str, Any], edited: str
) -> None:
    Path("team/parts").mkdir(parents=True)
    for name in ("team/fit.py", "team/__main__.py", "tool.py"):
        Path(name).write_text(GOOD + MAIN)
    Path("team/__init__.py").write_text("from team.fit import train\n")
    for name in ("team/parts/loss.py", "unrelated.py", "o.yaml"):
        Path(name).write_text("")
    assert fit(plan(GOOD, **options)).version == 1
    Path("unrelated.py").write_text("edited = True\n")
    assert fit(plan(GOOD, **options)).reused
    Path(edited).write_text(f"{Path(edited).read_text()}\n# edited\n")
    assert fit(plan(GOOD, **options)).version == 2
    assert "team" not in sys.modules


def test_files_of_what_is_installed_are_not_hashed() -> None:
    options = ExternalOptions(command=["python", "-m", "torch.distributed.run", "-m", "os", "-mjson.tool", "{dataset}"])
    assert external._files(options) == {}


def test_the_command_in_the_readme_is_a_command() -> None:
    (line,) = re.findall(r"--trainer external` \|.*?(--set command=.*?)`", (REPOSITORY / "README.md").read_text())
    (options,) = fields_of([shlex.split(line)[1]], [ExternalOptions], listing="")
    assert options == {"command": ["python", "fit.py", "{dataset}", "{predictions}"]}


def test_samples_without_an_answer_are_counted_and_a_scenario_of_them_is_refused(world: Path) -> None:
    program = GOOD.replace("pa.table(answers)", "pa.table(answers).slice(0, 30)")
    found = fit(plan(program))
    assert found.notes == ["18 of 48 evaluation samples have no answer"]
    scenarios.freeze_scenario("all", ["dev", "held"])
    with pytest.raises(BadInput, match="answered for 30 of these 48 samples"):
        evaluating.evaluate("theirs", "all")


FAILURES = {
    "exit": (
        HEAD + "    print('\\x1b[31mno memory\\x07'); sys.exit(3)",
        r"(?s)ended with code 3; its log is .*\n.*no memory$",
    ),
    "signal": (HEAD + "    os.kill(os.getpid(), 9)", "ended with code 137"),
    "nothing": (HEAD, "left no predictions"),
    "junk": (HEAD + "    predictions.write_bytes(b'PAR1junk')", "cannot be read as predictions"),
    "link": (HEAD + "    predictions.symlink_to('/etc/passwd')", "left no predictions"),
    "none of them": (
        HEAD + "    pq.write_table(pa.table({'sample_id': ['a'], 'class_name': ['bar']}), predictions)",
        "answered for none of the samples",
    ),
    "no rows": (
        HEAD + "    pq.write_table(pa.table(answers).slice(0, 0), predictions)",
        "answered for none of the samples",
    ),
    "no class": (
        HEAD + "    pq.write_table(pa.table({**answers, 'class_name': ['cat'] * len(ids)}), predictions)",
        "48 unknown class",
    ),
    "NaN": (
        HEAD + "    pq.write_table(pa.table({**answers, 'p:bar': [float('nan')] * len(ids)}), predictions)",
        "48 NaN or empty probability",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_each_failure_is_told_plainly_and_leaves_no_model(world: Path, failure: str) -> None:
    program, message = FAILURES[failure]
    with pytest.raises(BadInput, match=message) as error:
        fit(plan(program))
    assert "\x1b" not in str(error.value)
    with open_stores() as stores:
        assert not runs.list_models(stores.db)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"command": ["no-such-program"]}, "program 'no-such-program' is not found"),
        ({"function": "os.system('true')"}, "names no function"),
        ({"function": "train:missing"}, r"ended with code 1(.|\n)*AttributeError"),
    ],
)
def test_what_cannot_be_started_is_told(world: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        fit(plan(GOOD, **options))


def test_it_sees_neither_secrets_nor_what_the_holdout_shows(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPNET_LABEL_STUDIO_TOKEN", "s3cret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    spy = (
        GOOD
        + """
    print(sorted(os.environ), sorted(file.name for file in dataset.iterdir()))
    print(pq.read_schema(dataset / "evaluate.parquet").names, open('/proc/self/environ').read())
"""
    )
    fit(plan(spy))
    _, training = kept()
    with open_stores() as stores:
        log = stores.objects.read(training.log_key).decode()
    assert "DIPNET" not in log
    assert "s3cret" not in log
    assert "'PATH'" in log
    assert "['sample_id', 'uri']" in log


ORPHAN = """
import os, subprocess, sys, time
child = "import os, time; os.setsid(); open('grandchild', 'w').write(str(os.getpid())); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child])
while not os.path.exists("grandchild") or not open("grandchild").read():
    time.sleep(0.01)
time.sleep(600)
"""


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_at_the_time_limit_it_ends_with_all_its_descendants(world: Path) -> None:
    with pytest.raises(BadInput, match=r"(?s)was stopped after 0\.1 minutes; its log is .*\ntrained on 40 with 7$"):
        fit(plan(HEAD + textwrap.indent(ORPHAN, "    "), minutes=0.1))
    assert not alive(int(Path("grandchild").read_text()))


def test_it_ends_when_dipnet_is_killed(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(ORPHAN)
    command, log = [sys.executable, "train.py"], str(tmp_path / "log")
    work = f"""from pathlib import Path
from tasks.trainers import external, running
running.run({command!r}, Path({log!r}), seconds=600)"""
    process = subprocess.Popen(
        [sys.executable, "-c", work], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, cwd=tmp_path
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "grandchild").exists() or not (tmp_path / "grandchild").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    grandchild = int((tmp_path / "grandchild").read_text())
    assert alive(grandchild)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while alive(grandchild):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_tail_of_a_log_is_short_and_plain(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"\x1b[2Jearly\n" * 50 + b"\x00\xff last \x1b]0;title\x07\n" + b"x" * 100_000)
    tail = running.tail_of(tmp_path / "log")
    assert len(tail) <= 2_000
    assert all(sign.isprintable() or sign in "\n\t" for sign in tail)


def test_a_table_of_answers_is_kept_whole(world: Path, house: Path) -> None:
    fit(plan(GOOD))
    (file,) = house.glob("models/*/predictions.parquet")
    assert pq.read_table(file).column_names == ["sample_id", "predicted", "p:bar", "p:square"]
