"""Claims: two workers never hold the same piece of work, and what a dead one held is free."""

import subprocess
import sys
from pathlib import Path

from models.settings import load_settings
from storage.claims import claims_of

HOLDER = """
import sys, time
from models.settings import load_settings
from storage.claims import claims_of
with claims_of(load_settings()) as claims:
    print(claims.take("embed-1-7"), flush=True)
    time.sleep(600)
"""


def test_a_second_worker_takes_something_else() -> None:
    settings = load_settings()
    with claims_of(settings) as one, claims_of(settings) as other:
        assert one.take("embed-1-7")
        assert not other.take("embed-1-7")
        assert other.take("embed-1-8")
        one.release("embed-1-7")
        assert other.take("embed-1-7")


def test_claims_end_with_the_block_and_leave_no_file(house: Path) -> None:
    settings = load_settings()
    with claims_of(settings) as claims:
        claims.take("embed-1-7")
    with claims_of(settings) as claims:
        assert claims.take("embed-1-7")
    assert not list(house.glob("*-claim"))


def test_a_claim_ends_with_a_process_that_is_killed() -> None:
    settings = load_settings()
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "True"
        with claims_of(settings) as claims:
            assert not claims.take("embed-1-7")
            holder.kill()
            holder.wait()
            assert claims.take("embed-1-7")
