"""The web process that browsers and Label Studio reach: what it shows, what it refuses, and what it makes of a hint."""

import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from fastapi import FastAPI
from moto.server import ThreadedMotoServer
from PIL import Image
from pydantic import SecretStr
from sqlmodel import Session

from deploy.receiver import make_app
from models.base import utc_now
from models.campaign import Campaign, CampaignRun, Exemplar, Issue
from models.corpus import EncoderSpec, Sample
from models.elements import Box, Place, element_id
from models.errors import BadInput
from models.labeling import LabelBatch, LabelProject, LabelRequest
from models.settings import load_settings
from models.states import BatchState
from storage.media import SignedMedia, Signer, example_path, request_path
from storage.stores import open_stores
from tasks import showing
from tasks.compute.images import fingerprint

SECRET = "0123456789abcdef" * 4
SIGNER = Signer(SecretStr(SECRET))
TOKEN = SIGNER.webhook_token()
Logged = Callable[[], str]
Judge = Callable[..., bool]
Syncs = Any  # tests/deploy/conftest.py
Listening = Callable[[FastAPI], AbstractContextManager[str]]


def signed(path: str, *, hours: float = 1, signer: Signer = SIGNER) -> str:
    query = signer.query(path, utc_now() + timedelta(hours=hours))
    return f"{path}?until={query['until']}&signature={query['signature']}"


def picture(kind: str = "PNG", *, shade: int = 90, size: tuple[int, int] = (30, 20)) -> bytes:
    found = io.BytesIO()
    Image.new("RGB", size, (shade, 20, 200)).save(found, kind)
    return found.getvalue()


def put(folder: Path, name: str, data: bytes) -> Sample:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return Sample(id=fingerprint(data), uri=str(folder / name))


def ask(sample: Sample, *, key: str = "k1", state: BatchState = BatchState.OPEN, gone: bool = False) -> int:
    """A request about a sample, in a batch of a campaign of its own; the id of its project."""
    with open_stores() as stores:
        stores.db.merge(sample)
        stores.db.flush()
        run, project = campaign(stores.db, key)
        batch = LabelBatch(run_id=run, project_id=project, labeler="label-studio", state=state)
        stores.db.add(batch)
        stores.db.flush()
        stores.db.add(LabelRequest(batch_id=batch.id or 0, sample_id=sample.id, key=key, gone=gone))
    return project


def campaign(db: Session, name: str) -> tuple[int, int]:
    """The ids of a run and a project of a new campaign about an issue of the same name."""
    encoder = EncoderSpec(key=name, name="e", dim=2, weights_sha256="0", preprocessing="")
    issue = Issue(name=name, class_name="bar")
    db.add_all([encoder, issue])
    db.flush()
    owner = Campaign(name=name, issue_id=issue.id or 0)
    db.add(owner)
    db.flush()
    run = CampaignRun(
        campaign_id=owner.id or 0, key=name, plan_key=name, series=1, round=1, shards_key="", last_shard=0,
        encoder_id=encoder.id or 0, issue_version=1,
    )  # fmt: skip
    project = LabelProject(campaign_id=owner.id or 0, labeler="label-studio", external_id="7")
    db.add_all([run, project])
    db.flush()
    return run.id or 0, project.id or 0


def show_example(sample: Sample, project_id: int) -> None:
    with open_stores() as stores:
        stores.db.merge(sample)
        stores.db.flush()
        owner = stores.db.get_one(Campaign, stores.db.get_one(LabelProject, project_id).campaign_id)
        stores.db.add(Exemplar(issue_id=owner.issue_id, sample_id=sample.id, added_in_version=1))


def test_a_link_shows_the_image_and_lets_the_page_use_it(web: httpx.Client, tmp_path: Path) -> None:
    sample = put(tmp_path / "photos", "a b ü.png", picture())
    ask(sample)
    link = SignedMedia(SIGNER, str(web.base_url), utc_now() + timedelta(days=30)).of_request("k1", sample.uri)
    answer = httpx.get(link, headers={"Origin": "https://labels.example"})
    assert answer.status_code == 200
    assert answer.content == picture()
    assert (
        dict(answer.headers).items()
        >= {
            "content-type": "image/png",
            "access-control-allow-origin": "*",
            "cross-origin-resource-policy": "cross-origin",
            "x-content-type-options": "nosniff",
            "content-security-policy": "default-src 'none'; sandbox",
            "cache-control": "private, max-age=3600, immutable",
            "referrer-policy": "no-referrer",
            "etag": f'"{sample.id}"',
        }.items()
    )
    assert "server" not in answer.headers
    assert "set-cookie" not in answer.headers


def forgeries(good: str, other: str) -> list[str]:
    """Links that were not given out."""
    path, _, query = good.partition("?")
    until, signature = query.split("&")
    foreign = Signer(SecretStr("f" * 64))
    return [
        path,
        f"{path}?{until}",
        f"{path}?{signature}",
        f"{path}?until=&signature=",
        f"{path}?{until}&{signature[:-1]}{'0' if signature[-1] != '0' else '1'}",
        f"{path}?{until}&{signature.upper()}",
        f"{path}?{until}1&{signature}",
        f"{path}?until=9999999999999&{signature}",
        f"{path}?until={'9' * 6000}&{signature}",
        f"{path}?until=-1&{signature}",
        f"{path}?until=1e99&{signature}",
        f"{path}?until=%D9%A3&{signature}",
        f"{path}?until=%00&{signature}",
        f"{path}?{until}&signature=%FF%FE%00",
        f"{path}?{until}&signature=%F0%9F%90%9F",
        f"{path}?{until}&signature={TOKEN}",
        f"{path}?{until}&{signature}&{signature}",
        f"{path}?{until}&{until}&{signature}",
        f"{path}2?{until}&{signature}",
        f"{path}%00?{until}&{signature}",
        f"{path}%FF?{until}&{signature}",
        f"{path}?{other.partition('?')[2]}",
        f"{other.partition('?')[0]}?{query}",
        signed(path, hours=-0.001),
        signed(path, signer=foreign),
    ]


@pytest.mark.parametrize("kind", ["request", "example"])
def test_a_link_that_was_not_given_out_is_refused_like_every_other(
    web: httpx.Client, tmp_path: Path, kind: str, says_little: Judge
) -> None:
    one, two = (put(tmp_path, f"{n}.png", picture(shade=n)) for n in (1, 2))
    project = ask(one)
    ask(two, key="k2")
    show_example(one, project)
    show_example(two, project)
    paths = [request_path("k1"), request_path("k2")]
    if kind == "example":
        paths = [example_path(project, one.id), example_path(project, two.id)]
    good, other = (signed(path) for path in paths)
    assert web.get(good).content == picture(shade=1)
    answers = [web.get(link) for link in forgeries(good, other)]
    assert {(answer.status_code, answer.text) for answer in answers} == {
        (403, "this link is not valid, or no longer; open the task anew in the labelling tool\n")
    }
    assert all(says_little(answer, str(tmp_path)) for answer in answers)


def test_what_nobody_is_asked_about_is_not_shown(web: httpx.Client, tmp_path: Path, says_little: Judge) -> None:
    sample = put(tmp_path, "a.png", picture())
    with open_stores() as stores:
        stores.db.add(sample)
    rejected, deleted = put(tmp_path, "b.png", picture(shade=2)), put(tmp_path, "c.png", picture(shade=3))
    project = ask(rejected, key="rejected", state=BatchState.REJECTED)
    ask(deleted, key="deleted", gone=True)
    other = ask(put(tmp_path, "d.png", picture(shade=4)), key="quarantined", state=BatchState.QUARANTINED)
    show_example(rejected, project)
    paths = [request_path(key) for key in ("nobody", sample.id, "rejected", "deleted", "../x", "quarantined%00")]
    paths += [example_path(project, sample.id), example_path(other, rejected.id), example_path(999_999, rejected.id)]
    answers = [web.get(signed(path)) for path in paths]
    assert [answer.status_code for answer in answers] == [404] * len(paths)
    assert all(says_little(answer, str(tmp_path)) for answer in answers)
    assert web.get(signed(request_path("quarantined"))).status_code == 200
    assert web.get(signed(example_path(project, rejected.id))).content == picture(shade=2)


def test_an_image_that_changed_or_went_away_is_not_shown_for_what_it_was(
    web: httpx.Client, tmp_path: Path, says_little: Judge
) -> None:
    sample = put(tmp_path, "a.png", picture())
    ask(sample)
    assert web.get(signed(request_path("k1"))).status_code == 200
    put(tmp_path, "a.png", picture(shade=91))
    answer = web.get(signed(request_path("k1")))
    assert (answer.status_code, answer.text) == (410, "the image has changed since it was chosen\n")
    assert answer.headers["cache-control"] == "no-store"
    (tmp_path / "a.png").unlink()
    assert web.get(signed(request_path("k1"))).status_code == 404
    (tmp_path / "a.png").symlink_to("a.png")  # a loop: what the system answers is about the disk, not the image
    answer = web.get(signed(request_path("k1")))
    assert answer.status_code == 503
    assert says_little(answer, str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [
        ("JPEG", "image/jpeg"),
        ("GIF", "image/gif"),
        ("WEBP", "image/webp"),
        ("BMP", "image/bmp"),
        ("AVIF", "image/avif"),
    ],
)
def test_what_a_browser_shows_is_sent_as_it_is(web: httpx.Client, tmp_path: Path, kind: str, media_type: str) -> None:
    ask(put(tmp_path, "named.png", picture(kind)))
    answer = web.get(signed(request_path("k1")))
    assert (answer.headers["content-type"], answer.content) == (media_type, picture(kind))


def test_a_tiff_arrives_as_a_png(web: httpx.Client, tmp_path: Path) -> None:
    ask(put(tmp_path, "scan.tif", picture("TIFF")))
    answer = web.get(signed(request_path("k1")))
    assert answer.headers["content-type"] == "image/png"
    shown = Image.open(io.BytesIO(answer.content))
    assert (shown.format, shown.size, shown.getpixel((3, 3))) == ("PNG", (30, 20), (90, 20, 200))


def test_of_a_box_its_pixels_are_shown_and_no_others(web: httpx.Client, tmp_path: Path) -> None:
    photo = Image.new("RGB", (30, 20), (90, 20, 200))
    photo.paste((1, 2, 3), (10, 5, 18, 9))
    photo.save(tmp_path / "photo.png")
    data, box = (tmp_path / "photo.png").read_bytes(), Box(10, 5, 8, 4)
    ask(Sample(id=element_id(fingerprint(data), box), uri=Place(str(tmp_path / "photo.png"), box=box).uri))
    answer = web.get(signed(request_path("k1")))
    assert answer.headers["content-type"] == "image/png"
    shown = Image.open(io.BytesIO(answer.content))
    assert (shown.size, shown.getcolors()) == ((8, 4), [(32, (1, 2, 3))])
    assert web.get(signed(request_path("k1")), headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    (tmp_path / "photo.png").write_bytes(picture())
    assert web.get(signed(request_path("k1"))).status_code == 410


def test_a_member_of_a_tar_is_shown_where_it_lies(web: httpx.Client, tmp_path: Path) -> None:
    told = tarfile.TarInfo("deep/a b.jpg")
    told.size = len(picture("JPEG"))
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        archive.addfile(told, io.BytesIO(picture("JPEG")))
    with tarfile.open(tmp_path / "0.tar") as archive:
        place = Place(str(tmp_path / "0.tar"), told.name, archive.getmember(told.name).offset_data, told.size)
    ask(Sample(id=fingerprint(picture("JPEG")), uri=place.uri))
    answer = web.get(signed(request_path("k1")))
    assert (answer.headers["content-type"], answer.content) == ("image/jpeg", picture("JPEG"))
    (tmp_path / "0.tar").write_bytes(b"cut")
    assert web.get(signed(request_path("k1"))).status_code == 410


@pytest.mark.parametrize(
    "data",
    [
        b"not an image",
        b"BMW, a text that begins like a bitmap",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<!doctype html><script>alert(1)</script>",
        b"%PDF-1.7",
        b"RIFF\x10\0\0\0WAVEfmt ",
        b"\0\0\0\x14ftypheic\0\0\0\0heic",
        b"",
        picture("TIFF")[:40],
    ],
)
def test_what_is_no_image_is_not_shown_whatever_its_name(
    web: httpx.Client, tmp_path: Path, data: bytes, says_little: Judge
) -> None:
    ask(put(tmp_path, "a.png", data))
    answer = web.get(signed(request_path("k1")))
    assert answer.status_code == 415
    assert says_little(answer, str(tmp_path), "script")


def test_what_is_too_large_is_not_shown(
    listening: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syncs: Syncs
) -> None:
    monkeypatch.setenv("DIPNET_MAX_PIXELS", "500")
    ask(put(tmp_path, "scan.tif", picture("TIFF")))
    ask(put(tmp_path, "photo.png", picture()), key="k2")
    with listening(make_app(sync=syncs)) as url:
        assert httpx.get(url + signed(request_path("k1"))).status_code == 415
        assert httpx.get(url + signed(request_path("k2"))).status_code == 200
        monkeypatch.setattr(showing, "MOST_BYTES", 50)
        assert httpx.get(url + signed(request_path("k2"))).status_code == 415


def test_images_in_s3_are_shown_too(
    listening: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syncs: Syncs, says_little: Judge
) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "HOME": str(tmp_path / "home")}
    for name, value in {**values, "DIPNET_S3_ENDPOINT": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="photos")
    client.put_object(Bucket="photos", Key="in/deep/a b.png", Body=picture())
    ask(Sample(id=fingerprint(picture()), uri="s3://photos/in/deep/a b.png"))
    try:
        with listening(make_app(sync=syncs)) as url:
            links = [url + signed(request_path("k1"))] * 8
            answers = at_once([lambda link=link: httpx.get(link) for link in links])  # type: ignore[misc]
            assert [(answer.status_code, answer.content) for answer in answers] == [(200, picture())] * 8
            client.put_object(Bucket="photos", Key="in/deep/a b.png", Body=picture(shade=1))
            assert httpx.get(links[0]).status_code == 410
            client.delete_object(Bucket="photos", Key="in/deep/a b.png")
            answer = httpx.get(links[0])
            assert answer.status_code == 404
            assert says_little(answer, "photos")
            client.put_object(Bucket="photos", Key="in/deep/a b.png", Body=picture())
            monkeypatch.setattr(showing, "MOST_BYTES", 50)
            assert httpx.get(links[0]).status_code == 415
    finally:
        server.stop()


def at_once(calls: list[Callable[[], httpx.Response]]) -> list[httpx.Response]:
    found: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda call=call: found.append(call())) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_a_sample_on_the_web_is_not_fetched_for_anybody(web: httpx.Client) -> None:
    ask(Sample(id="0" * 64, uri=f"{web.base_url}/health"))
    assert web.get(signed(request_path("k1"))).status_code == 415


def test_a_browser_asks_for_the_head_and_whether_it_has_the_image_already(web: httpx.Client, tmp_path: Path) -> None:
    sample = put(tmp_path, "a.png", picture())
    ask(sample)
    link = signed(request_path("k1"))
    whole, head = web.get(link), web.head(link)
    assert (head.status_code, head.content) == (200, b"")
    assert {**head.headers, "date": ""} == {**whole.headers, "date": ""}
    for tag in (f'"{sample.id}"', f'W/"{sample.id}"', f'"other", "{sample.id}"', "*"):
        again = web.get(link, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == f'"{sample.id}"'
        assert again.headers["access-control-allow-origin"] == "*"
    assert web.get(link, headers={"If-None-Match": '"other"'}).content == picture()
    assert web.get(signed(request_path("no")), headers={"If-None-Match": "*"}).status_code == 404
    assert web.get(request_path("k1"), headers={"If-None-Match": "*"}).status_code == 403


def test_it_tells_who_it_is_only_to_who_knows_the_secret_and_nothing_else(
    web: httpx.Client, says_little: Judge
) -> None:
    assert web.get(signed("/health")).status_code == 204
    assert web.get("/health").status_code == 403
    assert web.get(signed("/health", hours=-1)).status_code == 403
    assert web.get(signed("/health", signer=Signer(SecretStr("f" * 64)))).status_code == 403
    for path in ("/", "/docs", "/redoc", "/openapi.json", "/health/", "/media", "/media/requests/", "/a%00b", "/%ff"):
        answer = web.get(path, headers={"Host": "evil.example"})
        assert (answer.status_code, answer.text) == (404, "not found\n")
        assert says_little(answer, "evil.example")
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        answer = web.request(method, signed(request_path("k1")))
        assert answer.status_code == 405
        assert says_little(answer)


def test_a_mistake_of_ours_tells_the_browser_nothing(
    web: httpx.Client, monkeypatch: pytest.MonkeyPatch, logged: Logged, says_little: Judge
) -> None:
    monkeypatch.setattr(showing.shown, "sample_of_request", lambda db, key: 1 / 0)
    answer = web.get(signed(request_path("k1")))
    assert (answer.status_code, answer.text) == (500, "this did not work\n")
    assert says_little(answer)
    until = time.monotonic() + 10
    while "ZeroDivisionError" not in logged():  # it is logged when it is answered
        assert time.monotonic() < until
    assert "signature=" not in logged()


def test_no_secret_is_not_a_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIPNET_RECEIVER_SECRET")
    with pytest.raises(BadInput, match="openssl rand -hex 32"):
        make_app(load_settings())


def test_signatures_are_not_logged(web: httpx.Client, tmp_path: Path, logged: Logged) -> None:
    ask(put(tmp_path, "a.txt", b"no image"))
    link = signed(request_path("k1"))
    assert web.get(link).status_code == 415
    assert web.get(link + "x").status_code == 403
    ours = logged()
    assert "/media/requests/k1 is not shown" in ours
    assert "GET /media/requests/k1 HTTP" in ours  # an access log, which somebody may switch on, has the path alone
    assert link.partition("signature=")[2] not in ours


@contextmanager
def clock(monkeypatch: pytest.MonkeyPatch, now: datetime) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr("deploy.receiver.utc_now", lambda: now)
        yield


def test_a_link_is_good_until_its_time_and_not_longer(
    web: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(put(tmp_path, "a.png", picture()))
    link = signed(request_path("k1"), hours=24 * 30)
    for days, status in ((0, 200), (29.9, 200), (30.1, 403)):
        with clock(monkeypatch, utc_now() + timedelta(days=days)):
            assert web.get(link).status_code == status
