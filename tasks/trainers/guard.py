"""Runs a command so that nothing of it is left when it ends, or when whoever started it is gone.

Started as a script, by our own interpreter, with nothing of ours imported: `python -I guard.py PROGRAM ARGUMENT …`. Its
standard input is a pipe that its parent holds and writes nothing to: the end of it, even by SIGKILL, is the end of the
command, of its children, and of what they have left behind in sessions of their own (Linux; elsewhere, of its group).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

ASK_EVERY_S = 0.1
SUBREAPER, DIES_WITH_PARENT = 36, 1  # of prctl
LINUX = sys.platform == "linux"


def main(command: list[str]) -> int:
    """The command's exit code; 128 + the signal that ended it; 127 when it cannot be started."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if LINUX:
        ctypes.CDLL(None).prctl(SUBREAPER, 1)
    try:
        process = subprocess.Popen(  # noqa: S603  what the plan names, without a shell
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_as_usual
        )
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    while process.poll() is None:
        if select.select([0], [], [], ASK_EVERY_S)[0] and not os.read(0, 1):
            break
    code = process.poll()
    _end(process)
    return 0 if code == 0 else 128 - code if code is not None and code < 0 else code or 137


def _as_usual() -> None:
    """In the child: signals do what they do by default, and the guard's death is its own."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if LINUX:
        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the command's group and, on Linux, every process that descends from us, until there is none."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while LINUX and (found := _descendants()):
        for number in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(number, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _descendants() -> list[int]:
    """Processes below us; orphans among them have become our children."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found: list[int] = []
    below = {os.getpid()}
    while fresh := {child for child, parent in parents.items() if parent in below and child not in below}:
        found.extend(fresh)
        below |= fresh
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
