"""Images on their way: in order, in the same batches every time, and never more at once than there is room for."""

from collections.abc import Generator, Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from models.elements import Box, Place
from tasks import pipeline
from tasks.compute.frame import Frame
from tasks.decoding import Chunk, Seen, Work
from tasks.pipeline import Batches, Job, Meter

FRAME = Frame(2, 2)


class Numbers:
    """Decoders of images that are named for a number: its pixels are that number; odd hundreds are unreadable."""

    workers = 1

    def __init__(self) -> None:
        self.held = self.most = 0

    def map(self, works: Iterable[Work], frame: Frame) -> Generator[Chunk]:
        for work in works:
            numbers = [int(place.object_uri) for place in work.places]
            seen = [Seen(f"{n}", f"{n}", 1, 1, None, 10, "missing" if n % 100 == 99 else "") for n in numbers]
            good = [n for n in numbers if n % 100 != 99]
            pixels = np.repeat(np.asarray(good, np.uint8), frame.height * frame.width * 3)
            self.held += 1
            self.most = max(self.most, self.held)
            yield Counted(self, work.tag, seen, pixels.reshape(-1, frame.height, frame.width, 3))


class Counted(Chunk):
    """A chunk that is counted until it is released."""

    def __init__(self, decoders: Numbers, tag: int, seen: list[Seen], pixels: NDArray[np.uint8]) -> None:
        super().__init__(tag, seen, pixels)
        self.decoders = decoders

    def release(self) -> None:
        self.decoders.held -= 1


class Mean:
    """An encoder whose vector is the mean of the pixels, and that notes its batches."""

    frame = FRAME

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.batches.append(len(pixels))
        return pixels.reshape(len(pixels), -1).mean(axis=1, keepdims=True).astype(np.float32)


def places(start: int, stop: int) -> list[Place]:
    return [Place(f"{number}") for number in range(start, stop)]


def jobs(*sizes: int) -> list[Job]:
    starts = np.cumsum([0, *sizes])
    return [Job(tag, places(starts[tag], starts[tag + 1]), [""] * size) for tag, size in enumerate(sizes)]


def run(some: Iterable[Job], encoder: Mean, size: int) -> tuple[dict[int, list[float]], Meter]:
    found: dict[int, list[float]] = {}
    meter = Meter(workers=1)
    batches = Batches(encoder, size, meter)
    decoders = Numbers()
    try:
        pipeline.run(
            some, decoders, batches, frame=FRAME, watch=meter.add,
            sink=lambda job: found.update({job.tag: job.vectors(1)[:, 0].tolist()}),
        )  # fmt: skip
    finally:
        batches.close()
    assert decoders.most == 1
    return found, meter


def test_every_readable_image_gets_its_own_vector_in_the_order_of_its_shard() -> None:
    found, meter = run(jobs(150, 1, 90), Mean(), 32)
    assert found[0] == [float(n) for n in range(150) if n % 100 != 99]
    assert found[1] == [150.0]
    assert found[2] == [float(n) for n in range(151, 241) if n % 100 != 99]
    assert (meter.images, meter.bytes) == (241, 2_410)


def test_a_shard_has_the_same_batches_whatever_came_before_it() -> None:
    alone, after = Mean(), Mean()
    run(jobs(90), alone, 40)
    run(jobs(30, 90), after, 40)
    assert alone.batches == [40, 40, 10]
    assert after.batches == [30, *[40, 40, 9]]  # one of these is unreadable


def test_boxes_of_one_image_are_never_cut_apart() -> None:
    image = [Place("1", box=Box(n, 0, 1, 1)) for n in range(100)]
    others = [Place(f"{n}") for n in range(10)]
    sizes = [len(work.places) for work in Job(0, [*others, *image, *others], [""] * 120).works()]
    assert sizes == [110, 10]


def test_images_listed_twice_without_boxes_may_be_cut_apart() -> None:
    assert [len(work.places) for work in Job(0, [Place("1")] * 100, [""] * 100).works()] == [64, 36]


def test_what_goes_wrong_while_encoding_or_storing_stops_the_run() -> None:
    class Broken(Mean):
        def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            raise FloatingPointError("no numbers")

    with pytest.raises(FloatingPointError, match="no numbers"):
        run(jobs(200), Broken(), 32)

    def full(job: Job) -> None:
        raise OSError("the disk is full")

    batches = Batches(Mean(), 32, Meter(workers=1))
    with pytest.raises(OSError, match="the disk is full"):
        pipeline.run(jobs(100, 100), Numbers(), batches, frame=FRAME, watch=lambda chunk: None, sink=full)
    batches.close()
