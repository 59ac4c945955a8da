"""`dipnet demo`: the whole loop on real images, each part the flow that a team runs, with a control arm beside it."""

import csv
import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from rich.console import Console

from flows import console, demo_view
from models.errors import BadInput, BadSettings
from models.plans import (
    CampaignPlan,
    DiscoverPlan,
    EmbedPlan,
    IngestPlan,
    ReportPlan,
    SelectionPolicy,
)
from models.retraining import GatePolicy, RetrainPlan, UpliftPlan
from models.settings import PREFIX
from models.values import CampaignOutcome

ASSETS = Path(__file__).resolve().parent.parent / "deploy" / "demo"
ENCODER, DATA = ASSETS / "clip", ASSETS / "data" / "fashion.parquet"
SPLITS = {"labelled": "train", "pool": "none", "development": "development", "holdout": "holdout"}
ARMS = {"campaign": ("probe", 4), "control": ("random", 1)}  # strategy, rounds
RESAMPLES = 2_000
# Training seeds behind the uplift. Of 5, 10, 20 and 40, the intervals are 0.16, 0.09, 0.08 and 0.07 wide: with few seeds
# Student's t for their spread is most of the interval.
SEEDS = 20
# Small images of ten kinds lie close together in the demo's small encoder; see deploy/demo/README.md.
NEAR_DUPLICATE, LEAK = 0.9995, 0.99995


class Demo(NamedTuple):
    """What the user chose, and where everything goes."""

    folder: Path
    budget: int
    seed: int
    label_studio: bool
    label_studio_url: str

    @property
    def key(self) -> str:
        """Hash of all that determines the outcome; the folder does not."""
        parts = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (DATA, *sorted(ENCODER.glob("open_clip*")))]
        parts += [str(self.budget), str(self.seed), "label-studio" if self.label_studio else "oracle"]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def run_demo(chosen: Demo, *, as_json: bool) -> None:
    """Run what is missing of the demo, show what it found, and say where the report lies."""
    out = Console(file=sys.stderr if as_json else sys.stdout)  # as it is now, for `progress` turns it aside
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with _alone(chosen.folder):
        report = _finished(chosen)
        if report is None:
            report = _run(chosen, out)
        else:
            out.print(f"this demo is finished in {chosen.folder}; nothing was done again", soft_wrap=True)
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201  the command's output
    else:
        demo_view.show(report, out)
    out.print(f"report: [bold]{chosen.folder / 'report.html'}[/bold] and report.json", soft_wrap=True)


def _run(chosen: Demo, out: Console) -> dict[str, Any]:
    """The stages, one after the other. Each is idempotent, so a demo that was killed goes on where it was."""
    stages = Stages(out)
    with ExitStack() as stack:
        stack.enter_context(demo_environment(chosen))
        with stages("unpack the images") as tell:
            tell(unpack(chosen.folder))
        with stages("start Prefect") as tell:
            from flows.control_plane import control_plane

            tell(stack.enter_context(control_plane(chosen.folder / "prefect.log")))
        if chosen.label_studio:
            with stages("start Label Studio") as tell:
                tell(stack.enter_context(_label_studio(chosen, out)))
        stack.enter_context(console.progress())
        plan = _loop(chosen, stages)
        with stages("write the report"):
            from tasks import arms

            summary = {"key": chosen.key, **arms.summarise(plan, RESAMPLES, chosen.seed), "times": stages.seconds}
            arms.write_report(str(chosen.folder), summary, plan)
    return summary


def _loop(chosen: Demo, stages: "Stages") -> ReportPlan:
    """Ingest, embed, train, discover, mine, label, retrain: the flows, in the order in which a team would run them."""
    from flows.corpus import embed_corpus, ingest_corpus
    from flows.discovery import discover_failures
    from flows.training import retrain_and_evaluate

    with stages("ingest") as tell:
        ingested = [ingest_corpus(ingest_plan(chosen.folder, name)) for name in SPLITS]
        tell(", ".join(f"{found.images} {found.corpus}" for found in ingested))
    with stages("embed with CLIP") as tell:
        embedded = embed_corpus(EmbedPlan(corpora=list(SPLITS)))
        tell(
            f"{sum(found.vectors for found in embedded)} vectors, {sum(len(e.quarantined) for e in embedded)} unreadable"
        )
    with stages("train and evaluate a baseline") as tell:
        baseline = retrain_and_evaluate(
            RetrainPlan(model="baseline", corpora=["labelled"], compare_with="none", seed=chosen.seed)
        )
        tell(f"on {baseline.fitted.samples} labels")
    with stages("find a cluster of failures") as tell:
        found = discover_failures(DiscoverPlan(model="baseline", scenario="development", seed=chosen.seed))
        tell(f"issue '{found.issue}': {found.failures} failures, {found.exemplars} exemplars")
    _answer(chosen)  # what a kill left open
    # The control arm is drawn before any label is in: what the campaign takes is not taken from it.
    for number in range(1, max(rounds for _, rounds in ARMS.values()) + 1):
        going = [arm for arm, (_, rounds) in reversed(ARMS.items()) if number <= rounds]
        with stages(f"round {number}: mine, send, label") as tell:
            told = [mine_arm(chosen, found.issue, arm) for arm in going]
            tell("; ".join([*told, f"{_answer(chosen)} answers"]))
    with stages("retrain and compare") as tell:
        tell(_retrain(chosen, found.issue))
    with stages(f"uplift over {SEEDS} training seeds") as tell:
        tell(_uplift(chosen))
    return ReportPlan(
        issue=found.issue,
        before="baseline",
        after="with-campaign",
        control="with-control",
        campaign="campaign",
        control_campaign="control",
        overall="all-holdout",
        slice=f"issue-{found.issue}",
    )


def _retrain(chosen: Demo, issue: str) -> str:
    """Both arms, each compared with the baseline on the same scenarios; the gate is about the campaign's."""
    from flows.training import retrain_and_evaluate

    def plan(arm: str, **more: Any) -> RetrainPlan:
        base = RetrainPlan(model=f"with-{arm}", corpora=["labelled"], campaigns=[arm], compare_with="baseline")
        return base.model_copy(update={"seed": chosen.seed, "resamples": RESAMPLES, **more})

    after = retrain_and_evaluate(plan("campaign", issue=issue))
    aside = GatePolicy(promote=False)  # a control is no candidate
    retrain_and_evaluate(plan("control", scenarios=list(after.evaluations), gate=aside))
    return ", ".join(f"gate: {gate.verdict.value}" for gate in after.gates) or "no gate"


def _uplift(chosen: Demo) -> str:
    """What the campaign's labels gave beyond as many labels of the control arm."""
    from tasks import reporting, uplift

    plan = UpliftPlan(campaign="campaign", control="control", corpora=["labelled"], seeds=SEEDS, seed=chosen.seed)
    found = uplift.measure(plan)
    reporting.write_model_report("with-campaign")  # once more: it knows of the uplift now
    return f"{found.metric} of {found.class_name} {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _answer(chosen: Demo) -> int:
    """Have every open request answered and fetch the answers; how many were new."""
    from flows.labeling import sync_labels

    if chosen.label_studio:
        _annotate()
    return sum(batch.new_labels for batch in sync_labels())


def mine_arm(chosen: Demo, issue: str, arm: str, *, name: str = "") -> str:
    """The next round of one arm, under its own name or another: the same issue, pool and budget, another strategy."""
    from flows.campaign import run_campaign

    strategy, rounds = ARMS[arm]
    policy = SelectionPolicy(
        strategy=strategy,
        rounds=min(rounds, chosen.budget),
        budget=chosen.budget,
        seed=chosen.seed,
        near_duplicate_cosine=NEAR_DUPLICATE,
        leak_cosine=LEAK,
        across_campaigns=False,  # the control arm must not know what the campaign took
    )
    outcome: CampaignOutcome = run_campaign(
        CampaignPlan(campaign=name or arm, issue=issue, corpora=["pool"], policy=policy, model="baseline")
    )
    return f"{arm}: {outcome.mined.candidates} of {outcome.mined.scanned}"


def ingest_plan(folder: Path, name: str) -> IngestPlan:
    labels = "" if name == "pool" else "class_name"
    return IngestPlan(corpus=name, prefix=str(folder / "images" / name), split=SPLITS[name], label_column=labels)


def unpack(folder: Path) -> str:
    """Write the committed images as files with a metadata.csv each split, and the truth that only the oracle reads.

    metadata.csv is written last: a split that has one is complete and is left alone.
    """
    table = pq.read_table(DATA)
    rows = table.to_pylist()
    for split in SPLITS:
        target = folder / "images" / split
        if (target / "metadata.csv").is_file():
            continue
        target.mkdir(parents=True, exist_ok=True)
        mine = [row for row in rows if row["split"] == split]
        for row in mine:
            (target / f"{row['name']}.png").write_bytes(row["png"])
        hidden = {"png", "split", "name", "source_index"} | ({"class_name"} if split == "pool" else set())
        columns = [name for name in table.column_names if name not in hidden]
        _write_csv(
            target / "metadata.csv",
            [{"file_name": f"{row['name']}.png", **{name: row[name] for name in columns}} for row in mine],
        )
    if not (folder / "truth.csv").is_file():
        truth = [{"sample_id": hashlib.sha256(row["png"]).hexdigest(), "class_name": row["class_name"]} for row in rows]
        _write_csv(folder / "truth.csv", truth)
    return f"{len(rows)} Fashion-MNIST images"


def _write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


@contextmanager
def demo_environment(chosen: Demo) -> Iterator[None]:
    """Settings of the demo alone: everything in its folder, nothing of the user's own set-up but a Label Studio token."""
    token = os.environ.get(f"{PREFIX}LABEL_STUDIO_TOKEN", "")
    if chosen.label_studio_url and not token:
        raise BadSettings("a Label Studio of your own needs its token; set DIPNET_LABEL_STUDIO_TOKEN")
    wanted = {
        "ROOT": str(chosen.folder / "data"),
        "DATABASE_URL": f"sqlite:///{chosen.folder / 'data' / 'dipnet.db'}",  # named, lest a .env names another
        "ENCODER": str(ENCODER),
        "LABELER": "label-studio" if chosen.label_studio else "oracle",
        "ORACLE_TRUTH": str(chosen.folder / "truth.csv"),
        "LABEL_STUDIO_URL": chosen.label_studio_url,
        "LABEL_STUDIO_TOKEN": token,
    }
    with environment({f"{PREFIX}{name}": value for name, value in wanted.items() if value}):
        yield


@contextmanager
def environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Exactly these DIPNET_ variables, until the block ends."""
    before = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    for name in before:
        del os.environ[name]
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _label_studio(chosen: Demo, out: Console) -> Iterator[str]:
    """The URL of the Label Studio to use: the user's own, or one started for the demo."""
    from storage.stores import open_stores

    if chosen.label_studio_url:
        from flows.receiving import receiver_beside

        with receiver_beside(chosen.folder):
            with open_stores() as stores:
                stores.labeler.check()  # now, not after a minute of embedding
            yield chosen.label_studio_url
        return
    from storage.labelstudio_server import LabelStudioServer

    home, files = chosen.folder / "label-studio", chosen.folder / "images"
    with LabelStudioServer(
        home, files_root=files, on_wait=lambda what: out.print(f"[dim]      {what}[/dim]")
    ) as server:
        os.environ |= {
            f"{PREFIX}LABEL_STUDIO_URL": server.url,
            f"{PREFIX}LABEL_STUDIO_TOKEN": server.token.get_secret_value(),
            f"{PREFIX}LABEL_STUDIO_FILES_ROOT": str(files),
        }
        yield server.url


def _annotate() -> None:
    """The oracle plays the annotator: it answers every open task through Label Studio's API, as a person would."""
    from storage.labelers import OracleLabeler
    from storage.labelstudio import LabelStudioLabeler
    from storage.stores import open_stores
    from tasks import labeling
    from tasks.steps import track

    with open_stores() as stores:
        labeler = stores.labeler
        if not isinstance(labeler, LabelStudioLabeler) or stores.settings.oracle_truth is None:
            raise BadInput("the demo's annotator answers in Label Studio; run it with --label-studio")
        truth = OracleLabeler.from_csv(stores.settings.oracle_truth).truth
        for project in labeling.open_projects():
            for task_id, sample_id in track(labeler.pending(project), "annotating"):
                labeler.submit(task_id, truth[sample_id], lead_seconds=1.0)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One demo a folder. The lock dies with its holder."""
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"another demo is running in '{folder}'; wait for it, or give another --folder") from None
        yield


def _finished(chosen: Demo) -> dict[str, Any] | None:
    """The report, if this very demo has one. Raises BadInput when the folder holds another."""
    marker, report = chosen.folder / "demo.json", chosen.folder / "report.json"
    held = json.loads(marker.read_text())["key"] if marker.is_file() else None
    if held not in (None, chosen.key):
        raise BadInput(
            f"'{chosen.folder}' holds a demo with other options or data; give another --folder, or delete it"
        )
    if held is None:
        partial = marker.with_suffix(".partial")
        partial.write_text(json.dumps({"key": chosen.key}))
        partial.replace(marker)
    if not report.is_file():
        return None
    found: dict[str, Any] = json.loads(report.read_text())
    return found


class Stages:
    """Numbered stages with their times."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, what: str) -> Iterator[Callable[[str], None]]:
        """One stage; the value is called with what there is to tell at its end."""
        started = time.monotonic()
        told: list[str] = []
        yield told.append
        self.seconds[what] = round(time.monotonic() - started, 2)
        place, took = f"[dim]{len(self.seconds):>2}.[/dim]", f"[dim]{self.seconds[what]:6.1f} s[/dim]"
        line = f"{place} {what:<30} {took}  {console.cell(' '.join(told))}"
        self._out.print(line, highlight=False, soft_wrap=True)
