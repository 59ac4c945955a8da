"""A real `dipnet embed` in a process of its own, to be killed, and what it leaves.

Run as a module this is a nursery: a process that has imported everything and forks one that runs the command for each
line that it reads, so that whoever kills that one hits the work and not the imports.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from sqlmodel import func, select

from models.corpus import EmbeddedShard, Sample
from models.labeling import Label
from models.plans import IngestPlan
from models.settings import load_settings
from storage.objects import PARTIAL
from storage.stores import open_stores
from tasks import ingesting

HOUSE = Path(__file__).parents[2]
MARK = "KILLED_EMBEDDING"  # in the environment of all that a run starts
TWO = {"DIPNET_RAY_EMBEDDERS": "2", "DIPNET_DECODERS": "2"}
ACTOR = "ray::EmbeddingActor"
RAY_VICTIMS = ("ray::look", ACTOR)
GONE_S = 10.0  # for processes to notice that their parent is gone
Rows = dict[int, tuple[Any, ...]]


class Run:
    """A process that runs `dipnet embed`, and how its descendants are known."""

    def __init__(self, nursery: Nursery, pid: int, mark: str, output: Path) -> None:
        self._nursery, self.pid, self._mark, self._output = nursery, pid, mark, output
        self._code: int | None = None

    def running(self) -> bool:
        """Whether it has not ended."""
        return _about(self.pid)[0] not in ("", "Z")

    def wait(self) -> int:
        """Its exit code; negative for the signal that ended it."""
        if self._code is None:
            self._code = self._nursery.wait(self.pid)
        return self._code

    def living(self) -> list[int]:
        """Processes of this run, whoever their parent is."""
        own = [self.pid] if self.running() else []
        return own + [pid for pid in _pids() if f"{MARK}={self._mark}" in _read(pid, "environ")]

    def children(self) -> list[int]:
        """Those that the first process started itself."""
        return [pid for pid in self.living() if _about(pid)[1] == str(self.pid)]

    def descendants(self) -> list[int]:
        """Its children and theirs. A process that renames itself, as Ray's do, has no environment to be known by."""
        parents = {pid: int(_about(pid)[1] or 0) for pid in _pids()}
        found = [self.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found[1:]

    def outcome(self) -> dict[str, Any]:
        """What it says at its end."""
        assert self.wait() == 0, Path(f"{self._output}.err").read_text()[-2000:]
        said = self._output.read_text()
        assert said.startswith("["), said[:2000]  # nothing but JSON, whatever died on the way
        told: list[dict[str, Any]] = json.loads(said)
        return told[0]


class Nursery:
    """Starts runs. One is enough for many."""

    def __enter__(self) -> Nursery:
        """Start the process, and wait until it has imported everything."""
        self._folder = Path(tempfile.mkdtemp(prefix="dipnet-nursery-"))
        about = {**os.environ, "PYTHONPATH": str(HOUSE), "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.tasks.killed_embedding"],
            env=about, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout and self._process.stdout.readline().strip() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.communicate("")
        shutil.rmtree(self._folder)

    @contextmanager
    def embedding(self, corpus: str, *options: str, **environment: str) -> Iterator[Run]:
        """A `dipnet embed` of this environment; whatever of it is left at the end is killed."""
        mark = uuid4().hex
        output = self._folder / mark
        about = {**os.environ, MARK: mark, "PYTHONPATH": str(HOUSE), "PYTHONWARNINGS": "ignore", **environment}
        command = ["dipnet", "embed", corpus, "--json", *options]
        run = Run(self, self._ask([command, about, str(output)]), mark, output)
        try:
            yield run
        finally:
            for pid in run.living():
                strike(pid)
            run.wait()

    def wait(self, pid: int) -> int:
        """The exit code of a run."""
        return self._ask(pid)

    def _ask(self, order: object) -> int:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def nurse() -> None:
    """Read orders, fork, and say which process it is, or, for a process, how it ended."""
    import open_clip  # noqa: F401
    import torchvision  # noqa: F401

    from flows import corpus  # noqa: F401  what the command imports when it runs
    from flows.cli import main
    from tasks import encoders, publishing, runners  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if isinstance(order, int):
            print(os.waitstatus_to_exitcode(os.waitpid(order, 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        os.setsid()
        sys.argv, environment, output = order
        os.environ.clear()
        os.environ.update(environment)
        for stream, file in ((1, output), (2, f"{output}.err")):
            os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        tempfile.tempdir = None
        main()
        sys.exit()


def corpus_of(folder: Path, name: str) -> None:
    """List a folder, with the classes that its metadata has."""
    ingesting.ingest(IngestPlan(corpus=name, prefix=str(folder), split="train", label_column="class_name"))


def strike(pid: int) -> bool:
    """Kill -9; whether there was somebody."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def gone(run: Run) -> bool:
    """Whether nothing of a run lives on, a moment after its end."""
    deadline = time.monotonic() + GONE_S
    while run.living():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def lingering(run: Run) -> list[str]:
    """Processes of a run that live on, a moment after its end."""
    return [] if gone(run) else [f"process left: {_read(pid, 'cmdline')[-90:]}" for pid in run.living()]


def made() -> Rows:
    """The complete shards, by number: the row, what it says, and when its vectors were written."""
    with open_stores() as stores:
        rows = stores.db.exec(select(EmbeddedShard)).all()
        root = Path(load_settings().root)
        return {row.shard_id: (row.id, *checksums(row), (root / row.vectors_key).stat().st_mtime_ns) for row in rows}


def checksums(row: EmbeddedShard) -> tuple[Any, ...]:
    """All that a row says of its shard but times and numbers."""
    return (row.vectors_sha256, row.ids_sha256, row.read_sha256, row.readable, tuple(sorted(row.quarantined.items())))


def result(rows: Rows) -> dict[int, tuple[Any, ...]]:
    """The same without what differs between two runs that give the same."""
    return {shard: row[1:-1] for shard, row in rows.items()}


def labels() -> Counter[str]:
    """Labels by sample: each is there once, or twice too often."""
    with open_stores() as stores:
        assert stores.db.exec(select(func.count()).select_from(Sample)).one() >= 0
        return Counter(stores.db.exec(select(Label.sample_id)).all())


def files(root: Path) -> set[str]:
    """What lies in a root, without the database's files."""
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("dipnet.db")}


def partial(root: Path) -> list[Path]:
    """Files that a kill left half-written."""
    return [path for path in root.rglob(f"{PARTIAL}*") if path.is_file()]


class Blow(NamedTuple):
    """Whom to kill, and how many seconds after the beginning."""

    at: float
    victim: str  # group, parent or worker


class Campaign(NamedTuple):
    """What so many kills came to."""

    kills: Counter[str]  # by victim
    wrong: list[str]
    partial: int  # files that kills left half-written


class Whole(NamedTuple):
    """What an undisturbed run gives."""

    result: dict[int, tuple[Any, ...]]
    labels: Counter[str]
    files: set[str]
    seconds: float

    def differs(self) -> list[str]:
        """In what the set that there is now is another one."""
        root = Path(load_settings().root)
        left = {str(path.relative_to(root)) for path in partial(root)}
        return (
            ["another set"] * (result(made()) != self.result)
            + ["other labels"] * (labels() != self.labels)
            + ["other files"] * (files(root) - left != self.files)
        )


def undisturbed(nursery: Nursery, corpus: str, scratch: Path, *options: str) -> Whole:
    """Embed a corpus that has no vectors yet, and put its root back to how it was; `scratch` keeps how that was."""
    root = Path(load_settings().root)
    shutil.copytree(root, scratch / "before")
    began = time.monotonic()
    with nursery.embedding(corpus, *options, TMPDIR=_temporary(scratch)) as run:
        run.outcome()
        seconds = time.monotonic() - began
    whole = Whole(result(made()), labels(), files(root), seconds)
    restore(scratch)
    return whole


def campaign(nursery: Nursery, corpus: str, scratch: Path, count: int, victims: Sequence[str]) -> Campaign:
    """Kill embeddings of a corpus that has no vectors yet at so many random instants, then let one end.

    A root that is complete is put back to how it was, until there were enough kills. `scratch` is an empty folder.
    """
    root, chance = Path(load_settings().root), random.Random(count)
    whole, found = undisturbed(nursery, corpus, scratch), Campaign(Counter(), [], 0)
    while (kills := found.kills.total()) < count:
        blow = Blow(chance.uniform(0.0, whole.seconds), victims[kills % len(victims)])
        before = made()
        hit, told = _blow(nursery, corpus, scratch, blow)
        found.kills[blow.victim] += hit
        found = found._replace(partial=found.partial + len(partial(root)))
        told += redone(before)
        if not hit or blow.victim == "worker" or found.kills.total() == count:
            with nursery.embedding(corpus, TMPDIR=_temporary(scratch)) as run:
                run.outcome()
            told += whole.differs() + redone(before)
            if found.kills.total() < count:
                restore(scratch)
        found.wrong.extend(f"{one}, after {blow}" for one in told)
    return found


def ray_campaign(nursery: Nursery, corpus: str, scratch: Path, count: int) -> Campaign:
    """Kill so many workers of Ray, in turns one that decodes and an actor that encodes, while runs go on to their ends."""
    chance, whole = random.Random(count), undisturbed(nursery, corpus, scratch)
    found = Campaign(Counter(), [], 0)
    while found.kills.total() < count:
        with nursery.embedding(corpus, "--runner", "ray", TMPDIR=_temporary(scratch), **TWO) as run:
            told = _ray_blows(run, found.kills, count, chance, len(whole.result))
            told += ["shards were not counted"] * (run.outcome()["shards_done"] != len(whole.result))
            told += lingering(run) + whole.differs()
        told += [f"{path} was left" for path in Path(scratch / "tmp").iterdir()]
        found.wrong.extend(told)
        restore(scratch)
    return found


def _ray_blows(run: Run, kills: Counter[str], count: int, chance: random.Random, shards: int) -> list[str]:
    """Kill workers of one run at random instants, each after another shard, until one in four is left; what was wrong."""
    wrong: list[str] = []
    before, actors, dead = made(), set[int](), 0
    while run.running():
        time.sleep(chance.uniform(0.0, 0.5))
        alive = {
            victim: [pid for pid in run.descendants() if victim in _read(pid, "cmdline")] for victim in RAY_VICTIMS
        }
        victim = RAY_VICTIMS[kills.total() % len(RAY_VICTIMS)]
        actors |= set(alive[ACTOR])
        now = len(made())
        if len(before) < now < 0.75 * shards and kills.total() < count and alive[victim]:
            hit = strike(chance.choice(alive[victim]))
            kills[victim] += hit
            dead += hit and victim == ACTOR
        wrong += redone(before)
        before = made()
    return wrong + redone(before) + ["an actor was not replaced"] * (len(actors) < 2 + dead)


def redone(before: Rows) -> list[str]:
    """Whether shards that were complete are not what they were."""
    after = made()
    return ["a shard was redone"] * any(after.get(shard) != row for shard, row in before.items())


def _blow(nursery: Nursery, corpus: str, scratch: Path, blow: Blow) -> tuple[bool, list[str]]:
    """One run under one blow: whether it hit, and what was wrong then."""
    wrong = []
    temporary = _temporary(scratch)
    with nursery.embedding(corpus, TMPDIR=temporary) as run:
        time.sleep(blow.at)
        if blow.victim == "worker":
            workers = run.children()
            hit = bool(workers) and strike(random.Random(blow.at).choice(workers))
            wrong += ["a run did not survive its worker"] * (run.wait() != 0)
        else:
            hit = run.running()
            for pid in run.living() if blow.victim == "group" else [run.pid]:
                strike(pid)
            hit = run.wait() == -signal.SIGKILL and hit
        wrong += lingering(run)
        wrong += [f"{path} was left" for path in Path(temporary).iterdir()]
    return hit, wrong


def _temporary(scratch: Path) -> str:
    folder = scratch / "tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return str(folder)


def restore(scratch: Path) -> None:
    """Put the root back to how `undisturbed` found it."""
    root = Path(load_settings().root)
    shutil.rmtree(root)
    shutil.copytree(scratch / "before", root)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _about(pid: int) -> tuple[str, str]:
    """State and parent of a process; '' for one that is gone."""
    about = _read(pid, "stat").rpartition(")")[2].split()
    return (about[0], about[1]) if about else ("", "")


if __name__ == "__main__":
    nurse()
