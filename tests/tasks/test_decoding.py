"""Works come back in order, whatever becomes of the processes that do them."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.elements import Box, Place, element_id
from models.errors import Unavailable
from models.settings import load_settings
from storage.reading import Access
from tasks.compute.frame import Frame
from tasks.compute.images import Limits, Reason, look
from tasks.decoding import LocalDecoders, Seen, Work, local_decoders

FRAME = Frame(24, 24)
HOUSE = Path(__file__).parents[2]


@pytest.fixture
def decoders() -> Iterator[LocalDecoders]:
    made = LocalDecoders(Access(most_bytes=20_000_000), workers=2, max_pixels=20_000_000)
    yield made
    made.close()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Twenty small images, each of a shade of its own."""
    made = [tmp_path / f"{number:02d}.png" for number in range(20)]
    for number, file in enumerate(made):
        Image.new("RGB", (30, 40), (10 * number, 0, 0)).save(file)
    return made


@pytest.fixture(scope="module")
def slow_jpeg() -> bytes:
    """A JPEG of ninety scans that takes a second or so."""
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).resize((2_000, 2_000)).save(sink, "JPEG", progressive=True, quality=80)
    data = sink.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 80 + data[-2:]


def work(files: Sequence[Path | str], tag: int = 0) -> Work:
    return Work(tag, [Place(str(file)) for file in files], [""] * len(files))


def reds(decoders: LocalDecoders, works: Iterable[Work]) -> dict[int, list[int]]:
    """The shade of each readable row, by work."""
    found = {}
    for chunk in decoders.map(works, FRAME):
        found[chunk.tag] = chunk.pixels[:, 12, 12, 0].tolist()
        chunk.release()
    return found


def everything(decoders: LocalDecoders, one: Work) -> tuple[list[Seen], list[int]]:
    (chunk,) = decoders.map([one], FRAME)
    return chunk.seen, chunk.pixels[:, 12, 12, 0].tolist()


def children(of: int) -> list[int]:
    """Processes whose parent is that one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == of and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_works_come_back_in_order_with_what_a_look_finds(decoders: LocalDecoders, files: list[Path]) -> None:
    works = [work(files[start : start + 3], tag=start) for start in range(0, 20, 3)]
    chunks = list(decoders.map(works, FRAME))
    assert [chunk.tag for chunk in chunks] == list(range(0, 20, 3))
    for chunk in chunks:
        for seen, pixels, file in zip(chunk.seen, chunk.pixels, files[chunk.tag :], strict=False):
            data = file.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            assert seen == Seen(digest, digest, 30, 40, None, len(data), "")
            assert np.array_equal(pixels, look(data, FRAME, [None], Limits(10_000)).pixels[0])
        assert chunk.decode_seconds > 0
        chunk.release()


def test_what_is_unreadable_has_a_reason_and_no_pixels(decoders: LocalDecoders, files: list[Path]) -> None:
    files[1].write_bytes(b"")
    files[2].write_bytes(b"no image at all")
    files[3].write_bytes(files[4].read_bytes()[:60])
    files[5].unlink()
    files[6].write_bytes(bytes(20_000_001))
    Image.new("1", (5_000, 5_000)).save(files[7])
    seen, shades = everything(decoders, work(files))
    reasons = {number: row.reason for number, row in enumerate(seen) if row.reason}
    assert list(reasons) == [1, 2, 3, 5, 6, 7]
    assert list(reasons.values()) == [
        *(Reason.EMPTY, Reason.NOT_AN_IMAGE, Reason.TRUNCATED, Reason.MISSING, Reason.TOO_MANY_BYTES, Reason.TOO_LARGE)
    ]
    assert seen[2].sample_id == hashlib.sha256(b"no image at all").hexdigest()
    assert seen[5].sample_id == ""
    assert shades == [0, 40, *range(80, 200, 10)]


def test_boxes_of_an_image_have_ids_of_their_own(decoders: LocalDecoders, files: list[Path]) -> None:
    boxes = [None, Box(0, 0, 10, 10), Box(500, 0, 10, 10), *(Box(place, 0, 9, 9) for place in range(20))]
    places = [Place(str(files[5]), box=box) for box in boxes] + [Place(str(files[6]))]
    seen, shades = everything(decoders, Work(0, places, [""] * len(places)))
    image_id = hashlib.sha256(files[5].read_bytes()).hexdigest()
    assert [row.sample_id for row in seen[:-1]] == [element_id(image_id, box) for box in boxes]
    assert {row.image_id for row in seen[:-1]} == {image_id}
    assert [row.reason for row in seen] == ["", "", Reason.OUTSIDE, *[""] * 21]
    assert (seen[2].width, seen[2].height) == (30, 40)
    assert shades == [50] * 22 + [60]


def test_works_are_asked_for_only_so_far_ahead(decoders: LocalDecoders, files: list[Path]) -> None:
    asked: list[int] = []

    def endless() -> Iterator[Work]:
        while True:
            asked.append(len(asked))
            yield work(files[:2], tag=asked[-1])

    found = decoders.map(endless(), FRAME)
    for taken in range(40):
        chunk = next(found)
        assert chunk.tag == taken
        chunk.release()
        assert len(asked) <= taken + 1 + 3 * decoders.workers
    found.close()
    assert reds(decoders, [work(files[3:5])]) == {0: [30, 40]}  # what was left does no harm


def test_chunks_that_are_kept_are_not_written_over(decoders: LocalDecoders, files: list[Path]) -> None:
    kept = list(decoders.map((work([file], tag=number) for number, file in enumerate(files)), FRAME))
    assert [int(chunk.pixels[0, 0, 0, 0]) for chunk in kept] == list(range(0, 200, 10))


def test_nothing_and_works_of_nothing_are_done_at_once(decoders: LocalDecoders) -> None:
    assert reds(decoders, []) == {}
    assert reds(decoders, [work([], tag=7)]) == {7: []}


def test_two_at_once_do_not_meet(decoders: LocalDecoders, files: list[Path]) -> None:
    one, other = (decoders.map([work(part, tag=1), work(part, tag=2)], FRAME) for part in (files[:5], files[5:10]))
    for first, second in zip(one, other, strict=True):
        assert first.pixels[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
        assert second.pixels[:, 0, 0, 0].tolist() == [50, 60, 70, 80, 90]


def test_frames_may_change(decoders: LocalDecoders, files: list[Path]) -> None:
    for side in (8, 300, 16):
        (chunk,) = decoders.map([work(files)], Frame(side, side))
        assert chunk.pixels.shape == (20, side, side, 3)
        assert chunk.pixels[:, 0, 0, 0].tolist() == list(range(0, 200, 10))
        chunk.release()


def test_an_image_that_takes_too_long_is_left_and_the_others_are_not(files: list[Path], slow_jpeg: bytes) -> None:
    files[4].write_bytes(slow_jpeg)
    files[9].write_bytes(slow_jpeg)
    decoders = LocalDecoders(Access(), workers=2, image_seconds=0.2)
    try:
        seen, shades = everything(decoders, work(files))
    finally:
        decoders.close()
    assert Counter(row.reason for row in seen) == {"": 18, Reason.TOO_SLOW: 2}
    assert [seen[4].reason, seen[9].reason] == [Reason.TOO_SLOW] * 2
    assert seen[4].sample_id == hashlib.sha256(slow_jpeg).hexdigest()
    assert shades == [shade for shade in range(0, 200, 10) if shade not in (40, 90)]


def test_a_process_that_is_killed_costs_nothing(
    decoders: LocalDecoders, files: list[Path], slow_jpeg: bytes, tmp_path: Path
) -> None:
    slow = tmp_path / "slow.jpg"
    slow.write_bytes(slow_jpeg)
    killed = kill_when_decoding(decoders, row=3, times=1)
    seen, shades = everything(decoders, work([*files[:3], slow, *files[3:]]))
    killed.join()
    assert [row.reason for row in seen] == [""] * 21
    assert shades[:3] + shades[4:] == list(range(0, 200, 10))


def test_an_image_that_ends_its_process_again_and_again_is_a_crasher(
    decoders: LocalDecoders, files: list[Path], slow_jpeg: bytes, tmp_path: Path
) -> None:
    crasher = tmp_path / "crasher.jpg"
    crasher.write_bytes(slow_jpeg)
    killed = kill_when_decoding(decoders, row=3, times=3)
    seen, shades = everything(decoders, work([*files[:3], crasher, *files[3:]]))
    killed.join()
    assert [row.reason for row in seen] == ["", "", "", Reason.CRASHED, *[""] * 17]
    assert shades == list(range(0, 200, 10))


def kill_when_decoding(decoders: LocalDecoders, *, row: int, times: int) -> threading.Thread:
    """Kill -9 whatever process is decoding that row, so many times."""

    def watch() -> None:
        left, deadline = times, time.monotonic() + 20
        while left and time.monotonic() < deadline:
            for pool in list(decoders._all):
                for process in list(pool._processes.values()):
                    if process.doing().row == row and process.pid not in gone:
                        os.kill(process.pid, signal.SIGKILL)
                        gone.add(process.pid)
                        left -= 1
            time.sleep(0.005)

    gone: set[int] = set()
    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_processes_that_are_killed_while_they_do_nothing_are_replaced(
    decoders: LocalDecoders, files: list[Path]
) -> None:
    before = set(children(os.getpid()))
    assert reds(decoders, [work(files)]) == {0: list(range(0, 200, 10))}
    for pid in set(children(os.getpid())) - before:
        os.kill(pid, signal.SIGKILL)
    assert reds(decoders, [work(files)]) == {0: list(range(0, 200, 10))}


def test_a_store_that_does_not_answer_is_told_to_whoever_asks(
    decoders: LocalDecoders, files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(Unavailable, match="credentials"):
        reds(decoders, [work(files), work(["s3://nowhere/a.jpg"])])
    assert reds(decoders, [work(files[1:2])]) == {0: [10]}


def test_no_process_outlives_the_one_that_asked(tmp_path: Path, slow_jpeg: bytes) -> None:
    slow = tmp_path / "slow.jpg"
    slow.write_bytes(slow_jpeg)
    code = (
        "import sys\nfrom tasks.decoding import LocalDecoders, Work, Access, Place, Frame\n"
        f"places = [Place({str(slow)!r})] * 4\n"
        "found = LocalDecoders(Access(), workers=2).map((Work(n, places[:1], ['']) for n in range(4)), Frame(16, 16))\n"
        "print('begun', flush=True)\nnext(found)\n"
    )
    names = set(Path("/dev/shm").iterdir())
    with subprocess.Popen([sys.executable, "-c", code], cwd=HOUSE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout and parent.stdout.readline() == "begun\n"
        until(lambda: len(children(parent.pid)) == 2)
        left = children(parent.pid)
        parent.kill()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))
    assert not {name for name in set(Path("/dev/shm").iterdir()) - names if "dipnet" in name.name}


def until(true: object, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_same_settings_share_their_processes(files: list[Path]) -> None:
    one = local_decoders(load_settings(decoders=1))
    assert local_decoders(load_settings(decoders=1)) is one
    assert reds(one, [work(files[:1])]) == {0: [0]}
    other = local_decoders(load_settings(decoders=1, image_seconds=7.0))
    assert other is not one
    assert reds(other, [work(files[1:2])]) == {0: [10]}
    assert reds(one, [work(files[2:3])]) == {0: [20]}  # it was ended, and starts again
    other.close()
    one.close()
