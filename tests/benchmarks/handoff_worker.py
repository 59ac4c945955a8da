"""Dipnet in a process that can be killed: everything is imported beforehand, and each piece of work is a fork of that.

Run as a program it reads orders, one a line, and answers with the id of the process that carries it out, then, asked to
wait, with how that process ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(HOUSE))

from models.errors import DipnetError  # noqa: E402
from models.plans import CampaignPlan  # noqa: E402
from tasks import labeling, routing  # noqa: E402
from tests.benchmarks.handoff_world import World  # noqa: E402

WELL, IN_OUR_WORDS, ESCAPED = 0, 5, 1


def send(of: World) -> None:
    """What run-campaign does with a mined run."""
    routing.send_batch(routing.prepare_batch(of.run_id, of.plan))


def sync(of: World) -> None:
    """What sync-labels does for one campaign."""
    for project_id in labeling.projects_to_sync([of.plan.campaign]):
        labeling.sync_project(project_id)


class Worker:
    """Whoever carries out sends and syncs, one at a time, while a `with` block lasts."""

    def __enter__(self) -> Worker:
        command = [sys.executable, str(Path(__file__).absolute())]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=HOUSE, stdin=pipe, stdout=pipe, text=True)
        self._read()
        self._pid, self.took = 0, 0.0  # seconds of the last work that was waited for
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def start(self, work: str, of: World, environment: dict[str, str]) -> None:
        """Begin a send or a sync."""
        order = {"work": work, "root": str(of.root), "plan": of.plan.model_dump_json(), "run_id": of.run_id}
        self._write(json.dumps(order | {"environment": environment}))
        self._pid = int(self._read())

    def kill(self) -> None:
        """Kill -9 what is under way; wait for its end all the same."""
        os.kill(self._pid, signal.SIGKILL)  # a zombie, if it has ended already: its id is its own until `wait`

    def wait(self) -> tuple[int, str]:
        """How it ended, -9 for killed, and what it said."""
        self._write("wait")
        said: list[Any] = json.loads(self._read())
        self.took = float(said[2])
        return int(said[0]), str(said[1])

    def run(self, work: str, of: World, environment: dict[str, str]) -> tuple[int, str]:
        """Do it to the end."""
        self.start(work, of, environment)
        return self.wait()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the worker has ended; see what it wrote to stderr")
        return line


def main() -> None:
    """Carry out orders until there are no more."""
    import label_studio_sdk  # noqa: F401  seconds, which are not to be waited for in every fork

    import storage.labelstudio  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        reading, writing = os.pipe()
        pid, began = os.fork(), time.monotonic()
        if pid == 0:
            os.close(reading)
            os.dup2(2, 1)  # what dipnet prints is no answer of ours
            _carry_out(order, writing)
        os.close(writing)
        print(pid, flush=True)
        with open(reading) as said:  # noqa: PTH123
            text = said.read()
        took = time.monotonic() - began
        sys.stdin.readline()  # whoever gave the order may kill until then
        _, status = os.waitpid(pid, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), text, took]), flush=True)


def _carry_out(order: dict[str, Any], writing: int) -> None:
    """Do it in the fork, which ends with it."""
    os.environ.update(order["environment"])
    of = World(Path(order["root"]), CampaignPlan.model_validate_json(order["plan"]), order["run_id"])
    code, said = WELL, ""
    try:
        {"send": send, "sync": sync}[order["work"]](of)
    except DipnetError as problem:
        code, said = IN_OUR_WORDS, str(problem)
    except BaseException:  # noqa: BLE001  whatever escapes is what is looked for
        code, said = ESCAPED, traceback.format_exc(limit=-6)
    os.write(writing, said.encode()[:4_000])
    os._exit(code)


if __name__ == "__main__":
    main()
