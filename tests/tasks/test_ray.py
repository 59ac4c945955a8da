"""On Ray: the same vectors as here, whoever dies; errors come through as they are, and nothing secret is written down."""

import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from flows.corpus import embed_corpus
from models.elements import Place
from models.errors import BadInput, BadSettings, Unavailable
from models.plans import EmbedPlan, IngestPlan
from models.settings import load_settings
from models.values import EmbeddedGroup
from tasks import embedding, ingesting
from tasks.compute.frame import Frame
from tasks.decoding import Seen, Work
from tasks.runners import LocalRunner, runner_of
from tests.tasks.killed_embedding import made, result

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: uv sync --extra ray")
FRAME = Frame(2, 2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One cluster for all: to start one takes ten seconds."""
    with runner_of(load_settings(runner="ray", decoders=2)) as runner:
        runner._connect()  # type: ignore[attr-defined]
        yield


def looked(environment: Mapping[str, str], work: Work, frame: Frame):  # type: ignore[no-untyped-def]
    """Stands for decoding: pixels are the number that an image is named for; some images are deadly."""
    from tasks.ray_decoding import Looked

    numbers = []
    for place in work.places:
        if place.object_uri == "down":
            raise Unavailable("the server is down")
        if place.object_uri == "broken":
            raise ZeroDivisionError("a bug")
        if place.object_uri == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        if place.object_uri.startswith("/"):  # deadly once
            path = Path(place.object_uri)
            if not path.exists():
                path.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        numbers.append(int(place.object_uri) if place.object_uri.isdigit() else 255)
    pixels = np.repeat(np.asarray(numbers, np.uint8), 12).reshape(-1, 2, 2, 3)
    return Looked([Seen(f"{n}", "", 1, 1, None, 10, "") for n in numbers], pixels, 0.0, 0.5)


def decoders(workers: int = 2):  # type: ignore[no-untyped-def]
    from ray import cloudpickle

    from tasks.ray_decoding import RayDecoders

    cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["looked"]))
    return RayDecoders({}, workers, looked)


def work(*names: object) -> Work:
    return Work(0, [Place(str(name)) for name in names], [""] * len(names))


def test_chunks_come_in_order_and_works_are_asked_for_a_few_ahead(cluster: None) -> None:
    asked = 0

    def works() -> Iterable[Work]:
        nonlocal asked
        for number in range(20):
            asked += 1
            yield work(number, number)

    for number, chunk in enumerate(decoders().map(works(), FRAME)):
        assert asked <= number + 5
        assert [seen.sample_id for seen in chunk.seen] == [f"{number}"] * 2
        assert chunk.pixels.shape == (2, 2, 2, 3) and set(chunk.pixels.ravel()) == {number}
        chunk.release()
    assert asked == 20


def test_a_worker_that_dies_is_replaced_and_its_work_done_again(cluster: None, tmp_path: Path) -> None:
    chunks = list(decoders().map([work(1), work(2, tmp_path / "once"), work(3)], FRAME))
    assert [[seen.sample_id for seen in chunk.seen] for chunk in chunks] == [["1"], ["2", "255"], ["3"]]
    assert all(seen.reason == "" for chunk in chunks for seen in chunk.seen)


def test_an_image_that_no_worker_survives_is_set_aside_alone(cluster: None) -> None:
    (chunk,) = decoders().map([work(1, "deadly", 2)], FRAME)
    assert [(seen.sample_id, seen.reason) for seen in chunk.seen] == [("1", ""), ("", "crashed the decoder"), ("2", "")]
    assert [int(image.ravel()[0]) for image in chunk.pixels] == [1, 2]
    assert chunk.decode_seconds == 1.0


class Dying:
    """Stands for what encodes: so many of its kind die, each once it is to embed something, and leave a mark."""

    def __init__(self, *_: object) -> None:
        """Nothing is needed."""

    def embed(self, shard_ids: list[int], folder: str, deaths: int, *_: object) -> EmbeddedGroup:
        dead = len(list(Path(folder).iterdir()))
        if dead < deaths:
            (Path(folder) / str(dead)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return EmbeddedGroup(shards=len(shard_ids))

    def so_far(self) -> EmbeddedGroup:
        return EmbeddedGroup()


@pytest.fixture
def seat(cluster: None, house: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A place for encoders that die."""
    from ray import cloudpickle

    from tasks import ray_runner

    cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["Dying"]))
    monkeypatch.setattr(ray_runner, "EmbeddingActor", Dying)
    share, settings = ray_runner.Share(1, 1, 1, 0), load_settings()
    with closing(ray_runner.Seat(settings, share, ray_runner.Board(embedding.bar_of(settings, [])))) as found:
        yield found


def dying(folder: Path, deaths: int) -> EmbedPlan:
    """A plan that says to `Dying` what it is to do."""
    folder.mkdir()
    return EmbedPlan(corpora=["pool"], encoder=str(folder), batch_size=deaths)


def test_an_encoder_that_dies_is_replaced_unless_the_next_ones_die_too(seat, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert seat.embed([1, 2], dying(tmp_path / "two", 2), wait=False).shards == 2
    with pytest.raises(Unavailable, match="3 encoders in a row died on the Ray cluster"):
        seat.embed([1, 2], dying(tmp_path / "many", 9), wait=False)
    assert len(list((tmp_path / "many").iterdir())) == 3
    seat.close()
    with pytest.raises(CancelledError):
        seat.embed([1, 2], dying(tmp_path / "none", 0), wait=False)


def test_what_is_raised_there_is_raised_here(cluster: None) -> None:
    with pytest.raises(Unavailable, match="the server is down"):
        list(decoders().map([work(1), work("down"), work(2)], FRAME))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(decoders().map([work("broken")], FRAME))


def test_vectors_are_those_that_are_made_here(cluster: None, draw, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("DIPNET_SHARD_SIZE", "20")
    folder = draw("pool", 70)
    (folder / "0007.png").write_bytes(b"")
    for name in ("here", "there"):
        ingesting.ingest(IngestPlan(corpus=name, prefix=str(folder)))
    (here,) = embed_corpus.fn(EmbedPlan(corpora=["here"]))
    (there,) = embed_corpus.fn(EmbedPlan(corpora=["there"], runner="ray"))
    assert here.model_dump(include=SAME) == there.model_dump(include=SAME)
    assert (there.shards_done, there.vectors, there.quarantined) == (4, 69, {"empty file": 1})
    found = list(result(made()).values())
    assert found[:4] == found[4:]
    with pytest.raises(BadInput, match="nowhere"):
        embed_corpus.fn(EmbedPlan(corpora=["there"], encoder="/nowhere", runner="ray"))


SAME = {"vectors", "quarantined", "shards_done", "images", "backend"}


def test_several_machines_need_postgresql() -> None:
    from tasks.ray_runner import refuse_sqlite

    refuse_sqlite(load_settings(), machines=1)
    refuse_sqlite(load_settings(database_url="postgresql://dipnet@db/dipnet"), machines=3)
    with pytest.raises(BadSettings, match="PostgreSQL that all of them reach"):
        refuse_sqlite(load_settings(), machines=2)
    with pytest.raises(BadSettings, match="PostgreSQL"):
        refuse_sqlite(load_settings(ray_address="ray://head:10001"), machines=1)


def test_what_travels_is_what_embedding_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.ray_runner import travelling

    monkeypatch.chdir("/")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws")
    settings = load_settings(root="here", label_studio_token="token", receiver_secret="s" * 32, max_pixels=5)
    found = travelling(settings)
    assert (found["DIPNET_ROOT"], found["DIPNET_DATABASE_URL"]) == ("/here", "sqlite:////here/dipnet.db")
    assert (found["DIPNET_MAX_PIXELS"], found["AWS_SECRET_ACCESS_KEY"]) == ("5", "aws")
    assert not [name for name in found if "TOKEN" in name or "RECEIVER" in name]


def test_actors_share_processors_and_gpus() -> None:
    from tasks.ray_runner import Share, Size, share_of

    settings = load_settings()
    assert share_of(Size(1, 8, 0), settings) == Share(1, 8, 8, 0)
    assert share_of(Size(1, 8, 0), load_settings(ray_embedders=2)) == Share(2, 4, 4, 0)
    assert share_of(Size(2, 32, 8), settings) == Share(8, 4, 4, 1)
    assert share_of(Size(2, 32, 8), load_settings(device="cpu")) == Share(2, 16, 16, 0)


def test_without_ray_there_is_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.runners.find_spec", lambda name: None)
    with pytest.raises(BadSettings, match="uv sync --extra ray"), runner_of(load_settings(runner="ray")):
        pass
    with runner_of(load_settings()) as runner:
        assert isinstance(runner, LocalRunner)
