"""Claims on PostgreSQL: advisory locks that end with the connection."""

import subprocess
import sys

import pytest

from models.settings import load_settings
from storage.claims import claims_of

HOLDER = """
import time
from models.settings import load_settings
from storage.claims import claims_of
with claims_of(load_settings()) as claims:
    print(claims.take("embed-1-7"), flush=True)
    time.sleep(600)
"""


def test_two_workers_share_what_there_is_and_a_killed_one_lets_go(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPNET_DATABASE_URL", postgres)
    settings = load_settings()
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "True"
        with claims_of(settings) as one, claims_of(settings) as other:
            assert not one.take("embed-1-7")
            assert one.take("embed-1-8")
            assert not other.take("embed-1-8")
            one.release("embed-1-8")
            assert other.take("embed-1-8")
            holder.kill()
            holder.wait()
            assert any(one.take("embed-1-7") for _ in range(1000))  # as soon as the server notices
