"""Against a real Label Studio: nothing twice, nothing mixed up, one clear line when it is unwell."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from PIL import Image
from pydantic import SecretStr

from models.errors import Incompatible, Unavailable
from models.settings import load_settings
from models.states import RequestState
from models.values import Answer, ProjectBrief, RequestDraft
from storage.labelstudio import LabelStudioLabeler, media_resolver
from storage.labelstudio_server import LabelStudioServer

CLASSES = ["cat", 'dog & "friends"', "<neither>"]


@pytest.fixture
def labeler(label_studio: LabelStudioServer) -> LabelStudioLabeler:
    files = label_studio_files(label_studio)
    return LabelStudioLabeler(
        url=label_studio.url,
        token=label_studio.token,
        media=media_resolver(load_settings(label_studio_files_root=files), str),
        files_root=files,
    )


def label_studio_files(server: LabelStudioServer) -> Path:
    assert server._files_root is not None
    return server._files_root


@pytest.fixture
def drafts(label_studio: LabelStudioServer) -> list[RequestDraft]:
    folder = label_studio_files(label_studio) / "pool"
    folder.mkdir(exist_ok=True)
    image = folder / "an image & more.png"
    Image.new("RGB", (8, 8), "red").save(image)
    batch = uuid4().hex
    return [
        RequestDraft(
            key=f"{batch}-{number}",
            uri=str(image),
            sample_id=f"sample-{number}",
            priority=number,
            predicted_class="cat" if number else "",
            predicted_probability=0.75,
            model_version="baseline-1",
        )
        for number in range(5)
    ]


@pytest.fixture
def project(labeler: LabelStudioLabeler) -> str:
    return labeler.open_project(brief())


def brief(title: str = "") -> ProjectBrief:
    return ProjectBrief(title=title or f"dipnet: {uuid4().hex}", class_names=CLASSES, instructions="Look closely.")


def annotate(labeler: LabelStudioLabeler, task: str, choices: list[str], **more: Any) -> Any:
    result = (
        [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": choices}}]
        if choices
        else []
    )
    return labeler._client.annotations.create(int(task), result=result, **more)


def answers(labeler: LabelStudioLabeler, project: str, since: datetime | None = None) -> dict[str, Answer]:
    return {answer.key: answer for answer in labeler.answers(project, waiting={}, since=since)}


def test_a_project_is_found_again_by_its_title(labeler: LabelStudioLabeler) -> None:
    wanted = brief()
    assert labeler.open_project(wanted) == labeler.open_project(wanted)
    assert labeler.url(labeler.open_project(wanted)).startswith("http://127.0.0.1:")


def test_a_project_that_lacks_a_class_is_refused(labeler: LabelStudioLabeler) -> None:
    wanted = brief()
    labeler.open_project(wanted)
    with pytest.raises(Incompatible, match="does not offer horse"):
        labeler.open_project(wanted.model_copy(update={"class_names": [*CLASSES, "horse"]}))


def test_sending_twice_makes_one_task_a_key(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft]
) -> None:
    first = labeler.send(project, drafts[:3])
    second = labeler.send(project, drafts)
    assert set(second) == {draft.key for draft in drafts}
    assert first.items() <= second.items()
    assert len(labeler.pending(project)) == len(drafts)


def test_a_lost_response_does_not_double_the_import(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = labeler._client.projects.import_tasks, []

    def arrives_but_its_answer_does_not(*args: Any, **kwargs: Any) -> Any:
        answer = real(*args, **kwargs)
        if not lost:
            lost.append(answer)
            raise httpx.ReadError("connection reset")
        return answer

    monkeypatch.setattr(labeler._client.projects, "import_tasks", arrives_but_its_answer_does_not)
    monkeypatch.setattr("storage.labelstudio.time.sleep", lambda _: None)
    assert set(labeler.send(project, drafts)) == {draft.key for draft in drafts}
    assert lost
    assert len(labeler.pending(project)) == len(drafts)


def test_a_task_shows_its_image_and_the_models_answer(
    labeler: LabelStudioLabeler, label_studio: LabelStudioServer, project: str, drafts: list[RequestDraft]
) -> None:
    sent = labeler.send(project, drafts)
    task = labeler._client.tasks.get(int(sent[drafts[1].key]))
    prediction = task.predictions[0] if isinstance(task.predictions[0], dict) else task.predictions[0].dict()
    assert prediction["model_version"] == "baseline-1"
    assert prediction["result"][0]["value"]["choices"] == ["cat"]
    image = label_studio.url + task.data["image"]
    shown = httpx.get(image, headers={"Authorization": f"Token {label_studio.token.get_secret_value()}"})
    assert shown.headers["content-type"] == "image/png"
    assert shown.content == Path(drafts[1].uri).read_bytes()
    assert httpx.get(image).status_code == 401


def test_answers_skips_empties_and_silence_are_told_apart(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft]
) -> None:
    sent = labeler.send(project, drafts)
    labelled, skipped, prefilled, empty, silent = drafts
    labeler.submit(int(sent[labelled.key]), CLASSES[1], lead_seconds=2.5)
    annotate(labeler, sent[skipped.key], [], was_cancelled=True)
    annotate(labeler, sent[prefilled.key], ["cat"], was_cancelled=True)
    annotate(labeler, sent[empty.key], [])
    labeler._client.tasks.create(project=int(project), data={"image": "x", "title": "somebody else's"})
    found = answers(labeler, project)
    assert {key: answer.state for key, answer in found.items()} == {
        labelled.key: RequestState.LABELLED,
        skipped.key: RequestState.SKIPPED,
        prefilled.key: RequestState.SKIPPED,
        empty.key: RequestState.EMPTY,
    }
    assert found[labelled.key].class_name == CLASSES[1]
    assert found[labelled.key].lead_seconds == 2.5
    assert found[prefilled.key].class_name == ""
    assert silent.key not in found


def test_a_correction_is_seen_since_the_watermark_and_the_rest_is_not(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.labelstudio.OVERLAP", timedelta(0))
    sent = labeler.send(project, drafts)
    first = annotate(labeler, sent[drafts[0].key], ["cat"])
    annotate(labeler, sent[drafts[1].key], ["cat"])
    watermark = max(answer.answered_at for answer in answers(labeler, project).values()) + timedelta(milliseconds=300)
    assert answers(labeler, project, watermark) == {}
    corrected = [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [CLASSES[2]]}}]
    while datetime.now(UTC) <= watermark:
        pass
    labeler._client.annotations.update(first.id, result=corrected)
    found = answers(labeler, project, watermark)
    assert {key: answer.class_name for key, answer in found.items()} == {drafts[0].key: CLASSES[2]}


@pytest.fixture
def something_else() -> Iterator[str]:
    """A web server that is no Label Studio."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("token", ["0" * 40, "not.a.jwt", "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.c2ln"])
def test_a_wrong_token_is_one_clear_line_without_the_token(label_studio: LabelStudioServer, token: str) -> None:
    with pytest.raises(Unavailable) as caught:
        LabelStudioLabeler(url=label_studio.url, token=SecretStr(token), media=str).check()
    assert "token" in str(caught.value)
    assert token not in str(caught.value)


def test_a_server_that_is_down_is_one_clear_line() -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9 does not answer"):
        LabelStudioLabeler(url="http://127.0.0.1:9", token=SecretStr("0" * 40), media=str).check()


def test_something_else_that_answers_is_one_clear_line(something_else: str) -> None:
    with pytest.raises(Unavailable, match="does not speak Label Studio's language"):
        LabelStudioLabeler(url=something_else, token=SecretStr("0" * 40), media=str).check()


def test_a_healthy_server_tells_its_version(labeler: LabelStudioLabeler) -> None:
    assert labeler.check()["version"] == "1.23.2"
