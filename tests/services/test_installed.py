"""The command as it is installed."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_installed_command_starts() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "dipnet", "corpus", "show", "nothing"],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
