"""Read ahead gives each image's bytes in order and once, or why there are none; nothing hangs and nothing is overrun."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from models.elements import Box, Place
from models.errors import Unavailable
from storage import reading
from storage.bulk import Closed, Room
from storage.objects import DirectoryStore, open_store
from storage.reading import Access, Problem, read_ahead

Put = Callable[[str, bytes], Place]
HERE = Access()


@pytest.fixture(params=["directory", "s3"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Put, Access]:
    """Somewhere to put objects, and how to read them."""
    if request.param == "directory":
        store, access = open_store(str(tmp_path / "images")), HERE
    else:
        endpoint = request.getfixturevalue("s3_endpoint")
        store, access = open_store(f"s3://bucket/{tmp_path.name}", endpoint=endpoint), Access(endpoint)

    def put(key: str, data: bytes) -> Place:
        store.write(key, data)
        return Place(store.uri(key))

    return put, access


def read(places: list[Place], access: Access, etags: list[str] | None = None) -> list[bytes | Problem]:
    return list(read_ahead(places, etags or [""] * len(places), access))


def test_bytes_come_in_order_whatever_the_names(where: tuple[Put, Access]) -> None:
    put, access = where
    names = [f"{number:03d}.jpg" for number in range(70)]
    names += ["a b.jpg", "a%20b.jpg", "a#b.jpg", "ä/é.jpg", "a+b&c=d.jpg", "what?.jpg", "[x]{y}.jpg", ".x/.y"]
    places = [put(name, name.encode() * 1000) for name in names]
    assert read(places, access) == [name.encode() * 1000 for name in names]
    assert read(places[::-1], access)[0] == b".x/.y" * 1000


def test_what_is_not_there_and_what_is_empty_are_values_among_the_others(where: tuple[Put, Access]) -> None:
    put, access = where
    one, empty, two = put("1", b"one"), put("0", b""), put("2", b"two")
    gone = one._replace(object_uri=one.object_uri + "-gone")
    assert read([one, gone, empty, gone, two], access) == [b"one", Problem.MISSING, b"", Problem.MISSING, b"two"]


def test_an_image_of_too_many_bytes_is_never_read(where: tuple[Put, Access]) -> None:
    put, access = where
    places = [put("a", b"x" * 100), put("b", b"x" * 101)]
    tar = put("t.tar", b"y" * 1000).object_uri
    places += [Place(tar, "m", 10, 100), Place(tar, "n", 110, 101), Place(tar, "o", 300, 2)]
    found = read(places, access._replace(most_bytes=100))
    assert found == [b"x" * 100, Problem.TOO_LARGE, b"y" * 100, Problem.TOO_LARGE, b"yy"]


def test_what_changed_since_it_was_listed_is_told_from_what_did_not(where: tuple[Put, Access], tmp_path: Path) -> None:
    put, access = where
    places = [put(f"{number}", b"before") for number in range(3)]
    folder = places[0].object_uri.rpartition("/")[0]
    store = open_store(folder, endpoint=access.endpoint)
    listed = {item.key: item.etag for item in store.list()}
    put("1", b"after, and longer")
    found = read(places, access, [listed["0"], listed["1"], listed["2"]])
    assert found == [b"before", Problem.CHANGED, b"before"]


def test_members_of_a_tar_are_read_in_place_and_neighbours_together(
    where: tuple[Put, Access], monkeypatch: pytest.MonkeyPatch
) -> None:
    put, access = where
    data = bytes(range(256)) * 400
    tar = put("x.tar", data).object_uri
    spans = [(0, 10), (512, 300), (100_000, 50), (99_000, 10), (512, 300), (512, 300), (102_390, 10), (5, 0)]
    places = [Place(tar, f"m{number}", *span) for number, span in enumerate(spans)]
    asks = list(reading._asks(places, [""] * len(places), access.most_bytes))
    assert [[part.start for part in ask.parts] for ask in asks] == [
        [0, 512],
        [100_000],
        [99_000],
        [512],
        [512],
        [102_390],
        [5],
    ]
    assert read(places, access) == [data[start : start + length] for start, length in spans]
    assert read([Place(tar, "all", 0, len(data))], access) == [data]
    monkeypatch.setattr("storage.reading.SPAN_BYTES", 400)
    assert read(places, access) == [data[start : start + length] for start, length in spans]


def test_a_tar_that_became_shorter_or_another_has_no_such_members(where: tuple[Put, Access]) -> None:
    put, access = where
    tar = put("x.tar", b"z" * 1000).object_uri
    places = [
        Place(tar, "whole", 0, 900),
        Place(tar, "cut", 900, 101),
        Place(tar, "behind", 5_000, 10),
        Place(tar, "far", 10**17, 10**6),
        Place(tar, "before", -1, 10),
        Place(tar, "less", 10, -1),
    ]
    assert read(places, access) == [b"z" * 900] + [Problem.CHANGED] * 5
    assert read(places[:1], access, ["another"]) == [Problem.CHANGED]


def test_boxes_of_one_image_share_one_read(where: tuple[Put, Access]) -> None:
    put, access = where
    image, other = put("a", b"aa"), put("b", b"bb")
    boxes = [image._replace(box=Box(number, 0, 1, 1)) for number in range(3)]
    found = read([*boxes, image, other, image], access)
    assert found == [b"aa"] * 4 + [b"bb", b"aa"]
    assert len({id(data) for data in found[:4]}) == 1


def test_stopping_half_way_leaves_nothing_open(where: tuple[Put, Access]) -> None:
    put, access = where
    places = [put(f"{number}", b"x" * 1000) for number in range(100)]
    before = len(list(Path("/proc/self/fd").iterdir()))
    some = read_ahead(places, [""] * 100, access)
    assert [next(some) for _ in range(3)] == [b"x" * 1000] * 3
    some.close()
    deadline = time.monotonic() + 10
    while any(thread.name.startswith("dipnet-read") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if not access.endpoint:
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_pipes_devices_and_folders_are_missing_and_hang_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    paths = [str(tmp_path / name) for name in ("pipe", "folder", "loop", "x" * 300)]
    paths += [
        "/dev/zero",
        "/dev/null",
        "/dev/tty",
        "nul\0in",
        "\udcff/\udcfe",
        "",
        str(tmp_path / "folder" / "a" / "b"),
    ]
    assert read([Place(path) for path in paths], HERE) == [Problem.MISSING] * len(paths)


def test_a_file_that_we_may_not_read_is_told_from_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    refuse = PermissionError(13, "Permission denied")  # root may read everything

    def opened(*_: object) -> int:
        raise refuse

    monkeypatch.setattr("storage.reading.os.open", opened)
    assert read([Place(str(tmp_path / "a"))], HERE) == [Problem.FORBIDDEN]


def test_a_broken_disk_is_named_and_no_image_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x")

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("storage.reading.os.pread", broken)
    with pytest.raises(Unavailable, match=r"a' cannot be read \(Input/output error\); mend the disk"):
        read([Place(str(tmp_path / "a"))], HERE)


def test_etags_of_files_are_those_of_listing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (listed,) = DirectoryStore(tmp_path).list()
    assert read([Place(str(tmp_path / "a"))], HERE, [listed.etag]) == [b"x"]
    os.utime(tmp_path / "a", ns=(1, 1))
    assert read([Place(str(tmp_path / "a"))], HERE, [listed.etag]) == [Problem.CHANGED]


@pytest.mark.parametrize("key", ["a//b", "/lead", "x/./y", "x/../y", "end/", "a\x01b"])
def test_a_key_that_is_no_path_is_the_key_itself(s3_endpoint: str, key: str, tmp_path: Path) -> None:
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    client.put_object(Bucket="bucket", Key=key, Body=b"0123456789")
    place = Place(f"s3://bucket/{key}")
    etag = client.head_object(Bucket="bucket", Key=key)["ETag"].strip('"')
    places = [place, place._replace(member="m", offset=2, length=3), place._replace(member="n", offset=20, length=3)]
    assert read(places, Access(s3_endpoint), [etag] * 3) == [b"0123456789", b"234", Problem.CHANGED]
    assert read([place], Access(s3_endpoint, most_bytes=9)) == [Problem.TOO_LARGE]
    assert read([place], Access(s3_endpoint), ["other"]) == [Problem.CHANGED]
    client.delete_object(Bucket="bucket", Key=key)
    assert read([place], Access(s3_endpoint)) == [Problem.MISSING]


def test_a_server_that_is_down_is_named_and_a_bucket_that_is_not_there_costs_its_images(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.bulk.PAUSE_S", 0.0)
    monkeypatch.setattr("storage.bulk.RETRIES", 0)
    with pytest.raises(Unavailable, match=r"s3://bucket/x' \(.+\); check the network, .* DIPNET_S3_ENDPOINT"):
        read([Place("s3://bucket/x")], Access("http://127.0.0.1:9"))
    assert read([Place("s3://other/x")], Access(s3_endpoint)) == [Problem.MISSING]


def test_who_has_no_credentials_is_told_where_to_put_them(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(Unavailable, match="no credentials for S3; set AWS_ACCESS_KEY_ID"):
        read([Place("s3://bucket/x")], Access(s3_endpoint))
    open_store("s3://bucket/", endpoint=s3_endpoint)
    (tmp_path / "credentials").write_text("[mine]\naws_access_key_id = test\naws_secret_access_key = test\n")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert read([Place("s3://bucket/x")], Access(s3_endpoint)) == [Problem.MISSING]


def test_bytes_that_nobody_has_taken_yet_are_bounded_and_the_next_in_line_always_has_room() -> None:
    room = Room(10)
    room.share(0)(100)  # the next in line
    taken: list[int] = []
    threads = [threading.Thread(target=lambda n=n: (room.share(n)(6), taken.append(n))) for n in (2, 1)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert taken == []
    room.give_back(0)
    deadline = time.monotonic() + 5
    while 1 not in taken:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    room.give_back(1)
    for thread in threads:
        thread.join(5)
    assert sorted(taken) == [1, 2]
    room.close()
    with pytest.raises(Closed):
        room.share(3)(1)


def test_where_answers_take_their_time_more_are_asked_for(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.reading.FAR_S", 0.0)
    store = open_store(f"s3://bucket/{tmp_path.name}", endpoint=s3_endpoint)
    for number in range(60):
        store.write(f"{number}", b"%d" % number)
    places = [Place(store.uri(f"{number}")) for number in range(60)] * 4
    some = read_ahead(places, [""] * len(places), Access(s3_endpoint))
    assert [next(some) for _ in range(100)] == [b"%d" % (number % 60) for number in range(100)]
    assert sum(thread.name.startswith("dipnet-read") for thread in threading.enumerate()) > reading.ASKING
    assert list(some) == [b"%d" % (number % 60) for number in range(100, 240)]


def test_an_answer_larger_than_all_room_is_read(where: tuple[Put, Access], monkeypatch: pytest.MonkeyPatch) -> None:
    put, access = where
    monkeypatch.setattr("storage.reading.IN_FLIGHT_BYTES", 1000)
    places = [put(f"{number}", bytes([number]) * 5000) for number in range(40)]
    assert read(places, access) == [bytes([number]) * 5000 for number in range(40)]
