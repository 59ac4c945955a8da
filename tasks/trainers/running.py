"""A team's own program, run in a process group of its own, with a time limit and a log that is kept."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tasks.trainers import guard

PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|VIRTUAL_ENV|CONDA_.*|PYTHON(PATH|HOME|HASHSEED|UNBUFFERED)"
    r"|LD_LIBRARY_PATH|CUDA_.*|NVIDIA_.*|OMP_.*|MKL_.*|OPENBLAS_.*|SSL_CERT_(FILE|DIR)"
)
TAIL_LINES, TAIL_CHARACTERS = 15, 2_000


class Ended(NamedTuple):
    """How a program ended."""

    code: int
    timed_out: bool


def run(command: Sequence[str], log: Path, *, seconds: float) -> Ended:
    """Run a command without a shell; all that it writes goes to the log. It and its descendants end with us.

    It sees no variable of ours: settings of dipnet hold tokens and the database's password.
    """
    environment = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  our own interpreter, and what the plan names
            [sys.executable, "-I", str(Path(guard.__file__)), *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            return Ended(process.wait(seconds), timed_out=False)
        except subprocess.TimeoutExpired:
            return Ended(-1, timed_out=True)
        finally:
            if process.stdin is not None:
                process.stdin.close()  # the guard ends what is left
            process.wait()


def tail_of(log: Path) -> str:
    """The last lines of a log, without what a terminal would take for commands."""
    with log.open("rb") as handle:
        handle.seek(max(0, log.stat().st_size - 4 * TAIL_CHARACTERS))
        text = handle.read().decode("utf-8", "replace")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = ["".join(sign for sign in line if sign.isprintable() or sign == "\t") for line in text.splitlines()]
    return "\n".join([line for line in lines if line.strip()][-TAIL_LINES:])[-TAIL_CHARACTERS:]
