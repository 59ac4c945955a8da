"""What a run says of itself: how near the limit it is, and what it waits for."""

import pytest

from models.values import EmbeddedGroup
from tasks import stages


def group(**values: float | str | int) -> EmbeddedGroup:
    told = {"shards": 1, "images": 1_000, "bytes": 50_000_000, "seconds": 10.0, "cores": 2, "workers": 2, **values}
    return EmbeddedGroup.model_validate(told)


def test_on_a_cpu_the_limit_is_reached_when_no_core_is_idle() -> None:
    busy = group(decode_seconds=4.0, encode_seconds=15.0)
    assert stages.share_of_limit(busy) == pytest.approx(0.95)
    assert stages.bottleneck(busy) == stages.ENCODING
    assert stages.bottleneck(group(decode_seconds=15.0, encode_seconds=4.0)) == stages.DECODING


def test_on_a_gpu_the_slower_stage_is_the_limit() -> None:
    waits = group(device="cuda", cores=16, workers=16, decode_seconds=152.0, encode_seconds=3.0)
    assert stages.share_of_limit(waits) == pytest.approx(0.95)
    assert stages.bottleneck(waits) == stages.DECODING
    assert stages.bottleneck(waits.model_copy(update={"encode_seconds": 9.9})) == stages.ENCODING


def test_idle_cores_and_waiting_decoders_mean_that_reading_is_slow() -> None:
    assert stages.bottleneck(group(decode_seconds=1.0, encode_seconds=2.0, read_seconds=18.0)) == stages.READING
    assert stages.bottleneck(group(decode_seconds=1.0, encode_seconds=2.0, read_seconds=2.0)) == stages.ENCODING


def test_groups_one_after_the_other_and_at_once_give_the_same_share() -> None:
    one = group(decode_seconds=4.0, encode_seconds=15.0)
    after, at_once = stages.together([one, one], seconds=20.0), stages.together([one, one], seconds=10.0)
    assert (after.images, at_once.images) == (2_000, 2_000)
    assert stages.share_of_limit(after) == pytest.approx(0.95)
    assert stages.share_of_limit(at_once) == pytest.approx(0.95)
    assert at_once.images / at_once.seconds == pytest.approx(2 * after.images / after.seconds)


def test_a_run_that_did_nothing_says_nothing() -> None:
    nothing = stages.together([], seconds=1.0)
    assert (stages.share_of_limit(nothing), stages.bottleneck(nothing), stages.told(nothing)) == (0.0, "", "")


def test_somebody_who_watches_reads_rates_and_what_is_waited_for() -> None:
    told = stages.told(group(decode_seconds=4.0, encode_seconds=15.0))
    assert told == "100 images/s · 5.0 MB/s · 95% of the limit · encoding"
