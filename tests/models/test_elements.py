"""Places of images and crops as URIs."""

import pytest

from models.elements import Box, Place, element_id, place_of


@pytest.mark.parametrize(
    "place",
    [
        Place("/data/a.jpg"),
        Place("s3://bucket/a b#c.jpg"),
        Place("/data/0001.tar", "deep/ä & b#1.jpg", 512, 10_240),
        Place("/data/a.jpg", box=Box(1, 2, 30, 40)),
        Place("/data/0001.tar", "a.jpg", 512, 10_240, Box(0, 0, 5, 6)),
    ],
)
def test_a_place_is_read_back_from_its_uri(place: Place) -> None:
    assert place_of(place.uri) == place


@pytest.mark.parametrize("uri", ["/data/a#b.jpg", "/data/a#", "/a#xywh=1,2,3", "/a#bytes=1+2", "/a#member=x"])
def test_what_is_no_fragment_of_ours_is_part_of_the_name(uri: str) -> None:
    assert place_of(uri) == Place(uri)


def test_a_box_has_an_id_of_its_own_and_a_whole_image_that_of_its_bytes() -> None:
    one, other = element_id("a" * 64, Box(0, 0, 5, 6)), element_id("a" * 64, Box(0, 0, 5, 7))
    assert element_id("a" * 64, None) == "a" * 64
    assert len({one, other, "a" * 64}) == 3
    assert len(one) == 64
