"""What a URI names is what people and networks see: a whole image, a member of a tar, or a box of either."""

import base64
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.corpus import EncoderSpec, Sample
from models.elements import Box, Place, element_id
from models.settings import load_settings
from storage.stores import open_stores
from tasks import elements, features, rendering
from tasks.compute import images
from tasks.encoders import load_encoder

QUARTERS = {"red": (0, 0), "lime": (30, 0), "blue": (0, 20), "white": (30, 20)}  # of a photo of 60 × 40


def photo(path: Path, **more: object) -> bytes:
    """A photo of four colours, in quarters."""
    image = Image.new("RGB", (60, 40))
    for colour, corner in QUARTERS.items():
        image.paste(colour, (*corner, corner[0] + 30, corner[1] + 20))
    image.save(path, **more)  # type: ignore[arg-type]
    return path.read_bytes()


@pytest.fixture
def places(tmp_path: Path) -> list[Place]:
    """The same photo as a file, and in a tar."""
    data = photo(tmp_path / "photo.png")
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        told = tarfile.TarInfo("in/photo.png")
        told.size = len(data)
        archive.addfile(told, io.BytesIO(data))
    with tarfile.open(tmp_path / "0.tar") as archive:
        member = archive.getmember("in/photo.png")
    return [
        Place(str(tmp_path / "photo.png")),
        Place(str(tmp_path / "0.tar"), member.name, member.offset_data, member.size),
    ]


@pytest.mark.parametrize("colour", QUARTERS)
def test_a_box_is_its_part_of_the_image(places: list[Place], colour: str) -> None:
    with open_stores() as stores:
        for place in places:
            found = elements.image_of(stores, place._replace(box=Box(*QUARTERS[colour], 30, 20)).uri)
            assert (found.size, found.getcolors()) == (
                (30, 20),
                [(600, Image.new("RGB", (1, 1), colour).getpixel((0, 0)))],
            )


def test_a_box_counts_in_pixels_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: what is stored is to be turned by 90 degrees to the right
    data = photo(tmp_path / "turned.png", exif=exif)
    assert elements.cut(data, None, max_pixels=10_000).size == (40, 60)
    assert elements.cut(data, Box(0, 0, 20, 30), max_pixels=10_000).getcolors() == [(600, (0, 0, 255))]


def test_a_box_that_leaves_the_image_ends_at_its_edge_and_one_outside_is_told(tmp_path: Path) -> None:
    data = photo(tmp_path / "photo.png")
    assert elements.cut(data, Box(50, 30, 30, 30), max_pixels=10_000).size == (10, 10)
    for outside in (Box(60, 0, 5, 5), Box(0, 40, 5, 5), Box(5, 5, 0, 3)):
        with pytest.raises(images.Unreadable, match="box outside the image"):
            elements.cut(data, outside, max_pixels=10_000)


def test_the_id_of_a_box_follows_from_bytes_and_box_wherever_the_image_lies(
    places: list[Place], tmp_path: Path
) -> None:
    data = (tmp_path / "photo.png").read_bytes()
    box = Box(0, 0, 30, 20)
    whole = images.fingerprint(data)
    assert {elements.id_of(data, place.uri) for place in places} == {whole}
    assert {elements.id_of(data, place._replace(box=box).uri) for place in places} == {element_id(whole, box)}


def test_a_box_is_encoded_as_its_pixels_alone(places: list[Place], tmp_path: Path) -> None:
    box = Box(0, 0, 30, 20)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    uris = [str(tmp_path / "red.png"), *(place._replace(box=box).uri for place in places), places[0].uri]
    with open_stores() as stores:
        network = load_encoder(load_settings().encoder, "cpu")
        encoder = EncoderSpec(key=network.spec.key, name=network.spec.name, dim=network.spec.dim, preprocessing="")
        red, boxed, in_a_tar, whole = features.of_samples(
            stores, [Sample(id=str(number), uri=uri) for number, uri in enumerate(uris)], encoder
        )
    np.testing.assert_allclose(boxed, red, atol=1e-5)
    np.testing.assert_allclose(in_a_tar, red, atol=1e-5)
    assert red @ whole < 0.999


def test_a_report_shows_the_box(places: list[Place]) -> None:
    with open_stores() as stores:
        shown = rendering.thumbnail(stores, Sample(id="x", uri=places[1]._replace(box=Box(30, 0, 30, 20)).uri))
        gone = Sample(id="y", uri=places[1]._replace(object_uri="/nowhere.tar").uri)
        assert rendering.thumbnail(stores, gone) == rendering.thumbnail(stores, None) == ""
    drawn = Image.open(io.BytesIO(base64.b64decode(shown.removeprefix("data:image/png;base64,"))))
    assert (drawn.size, drawn.getcolors()) == ((30, 20), [(600, (0, 255, 0))])
