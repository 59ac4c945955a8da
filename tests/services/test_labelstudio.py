"""Against a real Label Studio: nothing twice, nothing mixed up, one clear line when it is unwell."""

import base64
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr

from models.errors import BadInput, BadSettings, Incompatible, NotFound, Unavailable
from models.settings import Settings
from models.states import RequestState
from models.values import Answer, ProjectBrief, RequestDraft
from storage.labelstudio import LOCAL_FILES, LabelStudioLabeler, _normal, label_config, media_resolver
from storage.labelstudio_server import RELEASE, LabelStudioServer

CLASSES = ["cat", 'dog & "friends"', "<neither>", "a, b"]
RED_DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


# The SDK (2.1.2) renews personal access tokens through a method that pydantic has deprecated.
RENEWAL_WARNS = pytest.mark.filterwarnings("ignore:The `parse_obj` method is deprecated:DeprecationWarning")


class Breaking(httpx.BaseTransport):
    """The way to the server, except that answers to some requests are lost after the server did its work."""

    def __init__(self, path: str, losses: int, lose: Callable[[httpx.Request], httpx.Response]) -> None:
        self._way, self._path, self._left, self._lose = httpx.HTTPTransport(), path, losses, lose
        self.posts = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._way.handle_request(request)
        if request.method == "POST" and re.fullmatch(self._path, request.url.path):
            self.posts += 1
            if self._left:
                self._left -= 1
                response.read()
                response.close()
                return self._lose(request)
        return response

    def close(self) -> None:
        self._way.close()


def reset(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("connection reset", request=request)


def bad_gateway(request: httpx.Request) -> httpx.Response:
    return httpx.Response(502, html="<h1>Bad Gateway</h1>", request=request)


def settings(**known: Any) -> Settings:
    return Settings(_env_file=None, **known)


def open_labeler(server: LabelStudioServer, **more: Any) -> LabelStudioLabeler:
    files = server.files_root
    media = media_resolver(settings(label_studio_files_root=files), lambda uri: f"https://signed.example/{uri}")
    return LabelStudioLabeler(**{"url": server.url, "token": server.token, "media": media, "files_root": files} | more)


@pytest.fixture(scope="module")
def labeler(label_studio: LabelStudioServer) -> LabelStudioLabeler:
    return open_labeler(label_studio)


@pytest.fixture
def project(labeler: LabelStudioLabeler) -> str:
    return labeler.open_project(brief())


@pytest.fixture
def drafts() -> list[RequestDraft]:
    return drafts_of(uuid4().hex)


def brief(**known: Any) -> ProjectBrief:
    return ProjectBrief(
        **{"title": f"dipnet: {uuid4().hex}", "class_names": CLASSES, "instructions": "Is it <b>?"} | known
    )


def drafts_of(batch: str, model_version: str = "baseline-1", **known: Any) -> list[RequestDraft]:
    guess = {"predicted_class": "cat", "predicted_probability": 0.75, "model_version": model_version}
    return [
        RequestDraft(
            **{"key": f"{batch}-{n}", "uri": "https://x.example/1.png", "sample_id": f"sample-{n}", "priority": n}
            | (guess if n else {})
            | known
        )
        for n in range(6)
    ]


def result_of(*choices: str, control: str = "label") -> list[dict[str, Any]]:
    return [{"from_name": control, "to_name": "image", "type": "choices", "value": {"choices": list(choices)}}]


def annotate(labeler: LabelStudioLabeler, task: str, result: list[dict[str, Any]], **more: Any) -> Any:
    with labeler._server.plainly() as client:
        return client.annotations.create(int(task), result=result, **more)


def task_of(labeler: LabelStudioLabeler, task: str) -> Any:
    with labeler._server.plainly() as client:
        return client.tasks.get(task)


def answers(labeler: LabelStudioLabeler, project: str, since: datetime | None = None) -> dict[str, Answer]:
    found = list(labeler.answers(project, waiting={}, since=since))
    assert len({answer.key for answer in found}) == len(found)
    return {answer.key: answer for answer in found}


def count_tasks(labeler: LabelStudioLabeler, project: str) -> int:
    return len(list(labeler._server.tasks(project, include="id")))


# Projects


def test_a_project_is_found_again_by_its_title(labeler: LabelStudioLabeler, label_studio: LabelStudioServer) -> None:
    wanted = brief()
    project = labeler.open_project(wanted)
    assert labeler.open_project(wanted) == project
    assert labeler.url(project) == f"{label_studio.url}/projects/{project}"
    assert labeler.open_project(brief(title=wanted.title[:-1])) != project


def test_titles_longer_than_label_studio_takes_stay_apart(labeler: LabelStudioLabeler) -> None:
    titles = [f"dipnet: {uuid4().hex}-a-long-campaign-name-{letter}" for letter in "ab"]
    first, second = (labeler.open_project(brief(title=title)) for title in titles)
    assert first != second
    assert labeler.open_project(brief(title=titles[0])) == first


def test_a_lost_response_does_not_double_the_project(
    labeler: LabelStudioLabeler, label_studio: LabelStudioServer
) -> None:
    way, wanted = Breaking("/api/projects/", 1, reset), brief()
    project = open_labeler(label_studio, transport=way).open_project(wanted)
    assert way.posts == 1
    with labeler._server.plainly() as client:
        assert [str(p.id) for p in client.projects.list(title=wanted.title)] == [project]


def test_a_project_that_lacks_a_class_is_refused(labeler: LabelStudioLabeler) -> None:
    wanted = brief()
    labeler.open_project(wanted)
    with pytest.raises(Incompatible, match=f"'{wanted.title}' does not offer the class 'horse'; add it at http"):
        labeler.open_project(wanted.model_copy(update={"class_names": [*CLASSES, "horse"]}))


def test_awkward_class_names_survive_the_round_trip(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft]
) -> None:
    with labeler._server.plainly() as client:
        found = client.projects.get(int(project))
    assert found.parsed_label_config["label"]["labels"] == CLASSES
    assert found.label_config == label_config(CLASSES)
    assert found.expert_instruction == "Is it &lt;b&gt;?"
    sent = labeler.send(project, drafts)
    for draft, name in zip(drafts, CLASSES, strict=False):
        labeler.submit(sent[draft.key], name, lead_seconds=0)
    assert [answer.class_name for answer in answers(labeler, project).values()] == CLASSES


# Sending


def test_sending_twice_makes_one_task_a_key(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft]
) -> None:
    first = labeler.send(project, drafts[:3])
    second = labeler.send(project, [*drafts, drafts[0]])
    assert set(second) == {draft.key for draft in drafts}
    assert first.items() <= second.items()
    assert labeler.pending(project) == [(second[draft.key], draft.sample_id) for draft in drafts]


@pytest.mark.parametrize("lose", [reset, bad_gateway])
def test_a_lost_response_does_not_double_the_import(
    label_studio: LabelStudioServer, project: str, drafts: list[RequestDraft], lose: Any
) -> None:
    way = Breaking(r"/api/projects/\d+/import", 1, lose)
    labeler = open_labeler(label_studio, transport=way)
    assert set(labeler.send(project, drafts)) == {draft.key for draft in drafts}
    assert way.posts == 1
    assert count_tasks(labeler, project) == len(drafts)


def test_after_a_loss_only_what_is_missing_is_sent(
    label_studio: LabelStudioServer, project: str, drafts: list[RequestDraft], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.labelstudio.CHUNK", 4)
    way = Breaking(r"/api/projects/\d+/import", 1, reset)
    labeler = open_labeler(label_studio, transport=way)
    assert set(labeler.send(project, drafts)) == {draft.key for draft in drafts}
    assert way.posts == 2
    assert count_tasks(labeler, project) == len(drafts)


def test_an_import_that_never_succeeds_ends_with_one_line(
    label_studio: LabelStudioServer, project: str, drafts: list[RequestDraft], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.labelstudio_connection.time.sleep", lambda _: None)

    class Refusing(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            return bad_gateway(request) if request.method == "POST" else super().handle_request(request)

    labeler = open_labeler(label_studio, transport=Refusing())
    with pytest.raises(Unavailable, match="still lacks 6 of 6 label requests"):
        labeler.send(project, drafts)
    assert count_tasks(labeler, project) == 0


def test_of_two_tasks_with_one_key_the_older_counts(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft]
) -> None:
    task = {"data": {"image": "x", "dipnet_key": drafts[0].key, "sample_id": "s", "priority": 0}}
    with labeler._server.plainly() as client:
        first = client.projects.import_tasks(int(project), request=[task, task], return_task_ids=True).task_ids
    assert labeler.send(project, drafts)[drafts[0].key] == str(min(first))


def test_predictions_show_the_model_that_made_them(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft]
) -> None:
    sent = labeler.send(project, drafts)
    assert task_of(labeler, sent[drafts[0].key]).predictions == []
    (prediction,) = task_of(labeler, sent[drafts[1].key]).predictions
    assert (prediction.model_version, prediction.score) == ("baseline-1", 0.75)
    assert prediction.result[0]["value"] == {"choices": ["cat"]}

    labeler.send(project, drafts_of(uuid4().hex, model_version="baseline-2"))
    with labeler._server.plainly() as client:
        assert client.projects.get(int(project)).model_version == "baseline-2"


# Answers


def test_labelled_skipped_empty_foreign_and_silent_are_told_apart(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft]
) -> None:
    sent = labeler.send(project, drafts)
    labelled, skipped, prefilled, empty, strange, silent = drafts
    labeler.submit(sent[labelled.key], "cat", lead_seconds=2.5)
    annotate(labeler, sent[skipped.key], [], was_cancelled=True)
    annotate(labeler, sent[prefilled.key], result_of("cat"), was_cancelled=True)
    annotate(labeler, sent[empty.key], [])
    annotate(labeler, sent[strange.key], result_of("cat", control="other"))
    with labeler._server.plainly() as client:
        foreign = client.tasks.create(project=int(project), data={"image": "x"})
    annotate(labeler, str(foreign.id), result_of("cat"))

    found = answers(labeler, project)
    assert {key: (answer.state, answer.class_name) for key, answer in found.items()} == {
        labelled.key: (RequestState.LABELLED, "cat"),
        skipped.key: (RequestState.SKIPPED, ""),
        prefilled.key: (RequestState.SKIPPED, ""),
        empty.key: (RequestState.EMPTY, ""),
        strange.key: (RequestState.LABELLED, ""),  # something was said, but nothing that was offered
    }
    assert found[labelled.key].lead_seconds == 2.5
    assert found[labelled.key].annotator == "dipnet@localhost"
    assert abs(found[labelled.key].answered_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert labeler.pending(project) == [(sent[silent.key], silent.sample_id)]


def test_an_answer_outranks_a_skip_and_a_later_answer_an_earlier_one(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft]
) -> None:
    task = labeler.send(project, drafts[:1])[drafts[0].key]
    for name in ("cat", "<neither>"):
        annotate(labeler, task, result_of(name))
    annotate(labeler, task, result_of("cat"), was_cancelled=True)
    assert answers(labeler, project)[drafts[0].key].class_name == "<neither>"
    annotate(labeler, task, result_of("no such class", "cat"))
    assert answers(labeler, project)[drafts[0].key].class_name == "no such class, cat"


def test_polling_since_a_moment_sees_corrections_and_skips_and_nothing_older(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.labelstudio.OVERLAP", timedelta(0))
    sent = labeler.send(project, drafts)
    first = annotate(labeler, sent[drafts[0].key], result_of("cat"))
    annotate(labeler, sent[drafts[1].key], result_of("cat"))
    time.sleep(0.5)  # a task changes a little later than its annotation
    watermark = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)
    assert answers(labeler, project, watermark) == {}
    time.sleep(1.1)
    with labeler._server.plainly() as client:
        client.annotations.update(first.id, result=result_of("<neither>"))
    annotate(labeler, sent[drafts[2].key], [], was_cancelled=True)
    found = answers(labeler, project, watermark.astimezone())
    assert {key: answer.class_name for key, answer in found.items()} == {drafts[0].key: "<neither>", drafts[2].key: ""}
    assert found[drafts[0].key].external_id == str(first.id)
    assert found[drafts[0].key].answered_at > watermark
    monkeypatch.setattr("storage.labelstudio.OVERLAP", timedelta(minutes=5))
    assert len(answers(labeler, project, watermark)) == 3


def test_answering_twice_is_answering_once(
    label_studio: LabelStudioServer, project: str, drafts: list[RequestDraft]
) -> None:
    way = Breaking(r"/api/tasks/\d+/annotations/", 1, reset)
    labeler = open_labeler(label_studio, transport=way)
    task = labeler.send(project, drafts[:1])[drafts[0].key]
    labeler.submit(task, "cat", lead_seconds=1)  # the answer is lost, and asked for again
    labeler.submit(task, "cat", lead_seconds=1)
    assert way.posts == 3
    assert len(task_of(labeler, task).annotations) == 1


# Images


def test_a_local_image_is_served_to_those_who_are_signed_in(
    labeler: LabelStudioLabeler, label_studio: LabelStudioServer, project: str
) -> None:
    assert label_studio.files_root
    folder = label_studio.files_root / "pool 1 & more" / "é"
    folder.mkdir(parents=True)
    (folder / "100% #1.png").write_bytes(RED_DOT)
    (draft, *_) = drafts_of(uuid4().hex, uri=str(folder / "100% #1.png"))
    image = label_studio.url + task_of(labeler, labeler.send(project, [draft])[draft.key]).data["image"]
    labeler.send(project, drafts_of(uuid4().hex, uri=draft.uri))  # the folder is registered once
    with labeler._server.plainly() as client:
        assert len(client.import_storage.local.list(project=int(project))) == 1
    assert httpx.get(image).status_code == 401
    with signed_in(label_studio) as browser:
        shown = browser.get(image)
    assert (shown.status_code, shown.headers["content-type"], shown.content) == (200, "image/png", RED_DOT)


def test_images_that_would_not_show_are_not_sent(label_studio: LabelStudioServer, project: str) -> None:
    assert label_studio.files_root
    above = label_studio.files_root.parent
    wrong = media_resolver(settings(label_studio_files_root=above), str)
    (label_studio.files_root / "x.png").write_bytes(RED_DOT)
    labeler = open_labeler(label_studio, files_root=above, media=wrong)
    with pytest.raises(Unavailable, match=r"does not serve the images .*cannot be the same as.*_DOCUMENT_ROOT="):
        labeler.send(project, drafts_of(uuid4().hex, uri=str(label_studio.files_root / "x.png")))
    assert count_tasks(labeler, project) == 0


def test_an_image_becomes_what_a_browser_shows(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    for name in ("served/a b.png", "no-suffix"):
        (tmp_path / name).write_bytes(RED_DOT)
    (tmp_path / "large.png").write_bytes(RED_DOT + bytes(1_000_000))
    (tmp_path / "notes.txt").write_text("no image")
    media = media_resolver(settings(), lambda uri: f"signed {uri}")
    assert media("s3://bucket/a.png") == "signed s3://bucket/a.png"
    assert media("https://x.example/a.png") == "https://x.example/a.png"
    inline = "data:image/png;base64," + base64.b64encode(RED_DOT).decode()
    assert media(str(tmp_path / "no-suffix")) == inline
    for name, kind, match in (
        ("large.png", BadInput, "large.png' has .* DIPNET_LABEL_STUDIO_FILES_ROOT"),
        ("notes.txt", BadInput, "is no image that a browser shows"),
        ("gone.png", NotFound, "was it moved or deleted"),
    ):
        with pytest.raises(kind, match=match):
            media(str(tmp_path / name))
    linked = media_resolver(settings(label_studio_files_root=tmp_path), str)
    assert linked(str(tmp_path / "served/../served/a b.png")) == f"{LOCAL_FILES}served/a%20b.png"
    assert linked(str(tmp_path / "no-suffix")) == inline  # Label Studio serves folders below its root, not the root
    assert _normal(Path("x/../y")) == Path.cwd() / "y"


# Tokens, and servers that are unwell


@contextmanager
def signed_in(server: LabelStudioServer) -> Iterator[httpx.Client]:
    """A browser's session."""
    with httpx.Client(base_url=server.url, follow_redirects=True) as browser:
        browser.get("/user/login/")
        form = {"email": server.email, "password": server.password.get_secret_value()}
        browser.post("/user/login/", data={**form, "csrfmiddlewaretoken": browser.cookies["csrftoken"]})
        browser.headers["X-CSRFToken"] = browser.cookies["csrftoken"]
        yield browser


@RENEWAL_WARNS
def test_a_personal_access_token_works(
    label_studio: LabelStudioServer, project: str, drafts: list[RequestDraft]
) -> None:
    with signed_in(label_studio) as browser:
        token = browser.post("/api/token/").raise_for_status().json()["token"]
    assert token.count(".") == 2
    labeler = open_labeler(label_studio, token=SecretStr(f" {token}\n"))
    assert labeler.check() == {"version": RELEASE, "user": "dipnet@localhost"}
    sent = labeler.send(project, drafts[:1])
    labeler.submit(sent[drafts[0].key], "cat", lead_seconds=0)
    assert answers(labeler, project)[drafts[0].key].class_name == "cat"


EXPIRED = "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjEsInRva2VuX3R5cGUiOiJyZWZyZXNoIn0.c2ln"
FORGED = "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjQ5MDAwMDAwMDAsInRva2VuX3R5cGUiOiJyZWZyZXNoIn0.c2ln"


@pytest.mark.parametrize("token", ["0" * 40, "not.a.jwt", EXPIRED, FORGED])
def test_a_wrong_token_is_one_clear_line_without_the_token(label_studio: LabelStudioServer, token: str) -> None:
    for use in (LabelStudioLabeler.check, lambda labeler: labeler.open_project(brief())):
        with pytest.raises(Unavailable) as caught:
            use(open_labeler(label_studio, token=SecretStr(token)))
        said = str(caught.value)
        assert said.startswith(f"Label Studio at {label_studio.url} refused the token; set DIPNET_LABEL_STUDIO_TOKEN")
        assert token not in said
        assert "\n" not in said
        assert caught.value.__suppress_context__


def test_a_token_with_characters_that_no_token_has_is_refused_unsaid() -> None:
    with pytest.raises(BadSettings) as caught:
        LabelStudioLabeler(url="http://127.0.0.1:9", token=SecretStr("gehéim\n1"), media=str)
    assert "DIPNET_LABEL_STUDIO_TOKEN" in str(caught.value)
    assert "heim" not in str(caught.value)


def test_a_server_that_is_down_is_one_clear_line() -> None:
    labeler = LabelStudioLabeler(url="http://127.0.0.1:9", token=SecretStr("0" * 40), media=str)
    with pytest.raises(Unavailable) as caught:
        labeler.check()
    assert str(caught.value) == (
        "Label Studio at http://127.0.0.1:9 does not answer (ConnectError); start it or correct DIPNET_LABEL_STUDIO_URL"
    )


@RENEWAL_WARNS
@pytest.mark.parametrize(
    ("status", "headers", "body", "said"),
    [
        (200, {"content-type": "text/html"}, b"<html>hello</html>", "is not a Label Studio server"),
        (200, {"content-type": "application/json"}, b"{}", "is not a Label Studio server"),
        (404, {"content-type": "application/json"}, b'{"detail":"Not Found"}', "is not a Label Studio server"),
        (301, {"location": "https://ls.example/"}, b"", "redirects to https://ls.example/"),
        (503, {"content-type": "text/html"}, b"<html>busy</html>", "HTTP 503"),
    ],
)
def test_what_is_not_a_label_studio_is_one_clear_line(
    status: int, headers: dict[str, str], body: bytes, said: str
) -> None:
    # With a personal access token it is the token's renewal that meets the stranger, whose answer the SDK keeps to itself.
    for token, match in (("0" * 40, said), (FORGED, "is not a Label Studio server")):
        with answering(status, headers, body) as url, pytest.raises(Unavailable, match=match) as caught:
            LabelStudioLabeler(url=url, token=SecretStr(token), media=str).check()
        assert url in str(caught.value)
        assert token not in str(caught.value)


class answering:  # noqa: N801
    """A web server that gives one answer to everything."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Page)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


# A server of our own


@pytest.fixture
def child(label_studio_home: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that started a server in the same home, and says its URL."""
    program = (
        "import sys, time, pathlib; from storage.labelstudio_server import LabelStudioServer as S\n"
        "with S(pathlib.Path(sys.argv[1])) as s: print(s.url, s._process.pid, flush=True); time.sleep(600)"
    )
    repository = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program, str(label_studio_home)], cwd=repository, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_a_kill_of_the_parent_leaves_no_server(child: subprocess.Popen[str], label_studio: LabelStudioServer) -> None:
    assert child.stdout
    url, server = child.stdout.readline().split()
    assert httpx.get(f"{url}/health").status_code == 200
    child.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{server}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{server}").exists()


def test_the_servers_secrets_are_readable_by_their_owner_alone(label_studio: LabelStudioServer) -> None:
    for name in ("credentials.json", "server.log"):
        assert (label_studio.log.parent / name).stat().st_mode & 0o777 == 0o600
    log = label_studio.log.read_text()
    assert label_studio.token.get_secret_value() not in log
    assert label_studio.password.get_secret_value() not in log


def test_without_uv_the_next_action_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("storage.labelstudio_server.find_spec", lambda _: None)
    with pytest.raises(Unavailable, match="install it with: pip install uv"), LabelStudioServer(tmp_path / "home"):
        pass


def test_a_server_that_ends_early_shows_its_last_line(
    label_studio: LabelStudioServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.labelstudio_server.BOOT", "raise SystemExit('no room left')")
    with pytest.raises(Unavailable, match=r"ended instead of starting; .*server.log.*: no room left"):
        LabelStudioServer(tmp_path / "home").__enter__()
    assert os.environ.get("LABEL_STUDIO_USER_TOKEN") is None
