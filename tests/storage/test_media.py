"""Which images Label Studio can serve itself, and which need the receiver."""

from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from models.base import utc_now
from models.elements import Box, Place
from models.errors import BadInput
from storage.media import LOCAL_FILES, LocalFiles, SignedMedia, Signer

BOX = Box(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (Place("photos/a.jpg", box=BOX), "a part of one"),
        (Place("photos/0.tar", "a.jpg", 512, 9), "a member of a tar"),
        (Place("photos/0.tar", "a.jpg", 512, 9, BOX), "a part of one"),
    ],
)
def test_what_is_no_whole_file_needs_the_receiver(tmp_path: Path, place: Place, says: str) -> None:
    place = place._replace(object_uri=str(tmp_path / place.object_uri))
    media = LocalFiles(tmp_path)
    assert media.of_request("k", str(tmp_path / "photos" / "a.jpg")) == f"{LOCAL_FILES}photos/a.jpg"
    for ask in (lambda: media.of_request("k", place.uri), lambda: media.of_example(1, "s", place.uri)):
        with pytest.raises(BadInput, match=f"{says}; run `dipnet receiver`.* DIPNET_RECEIVER_URL"):
            ask()
    signed = SignedMedia(Signer(SecretStr("0" * 64)), "https://labels.example", utc_now() + timedelta(days=1))
    assert signed.of_request("k", place.uri).startswith("https://labels.example/media/requests/k?")


def test_a_box_of_an_image_on_the_web_is_not_linked_as_the_whole_image(tmp_path: Path) -> None:
    signed = SignedMedia(Signer(SecretStr("0" * 64)), "https://labels.example", utc_now() + timedelta(days=1))
    on_the_web = Place("https://photos.example/a.jpg")
    assert signed.of_request("k", on_the_web.uri) == on_the_web.uri
    assert signed.of_request("k", on_the_web._replace(box=BOX).uri).startswith("https://labels.example/")
    with pytest.raises(BadInput, match="receiver"):
        LocalFiles(tmp_path).of_request("k", on_the_web._replace(box=BOX).uri)
