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

from models.errors import BadInput, BadSettings, Incompatible, Unavailable
from models.states import RequestState
from models.values import Answer, Example, ProjectBrief, RequestDraft, Settled
from storage.labelstudio import LabelStudioLabeler
from storage.labelstudio_format import label_config
from storage.labelstudio_server import RELEASE, LabelStudioServer
from storage.media import LOCAL_FILES, LocalFiles, normal

CLASSES = ["cat", 'dog & "friends"', "<neither>", "a, b"]
RED_DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


# The SDK (2.1.2) renews personal access tokens through a method that pydantic has deprecated.
RENEWAL_WARNS = pytest.mark.filterwarnings("ignore:The `parse_obj` method is deprecated:DeprecationWarning")


class Breaking(httpx.BaseTransport):
    """The way to the server, except that answers to some requests are lost after the server did its work."""

    def __init__(
        self, path: str, losses: int, lose: Callable[[httpx.Request], httpx.Response], method: str = "POST"
    ) -> None:
        self._way, self._path, self._left, self._lose = httpx.HTTPTransport(), path, losses, lose
        self._method = method
        self.posts = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._way.handle_request(request)
        if request.method == self._method and re.fullmatch(self._path, request.url.path):
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


def open_labeler(server: LabelStudioServer, **more: Any) -> LabelStudioLabeler:
    return LabelStudioLabeler(
        **{"url": server.url, "token": server.token, "media": LocalFiles(server.files_root)} | more
    )


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


def answers(labeler: LabelStudioLabeler, project: str, settled: Settled | None = None) -> dict[str, list[Answer]]:
    pages = labeler.changes(project, waiting={}, settled=settled)
    found = {item.key: item.answers for items in pages for item in items}
    return {key: given for key, given in found.items() if given}


def classes(labeler: LabelStudioLabeler, project: str) -> dict[str, list[str]]:
    return {key: given[-1].class_names for key, given in answers(labeler, project).items()}


def count_tasks(labeler: LabelStudioLabeler, project: str) -> int:
    return labeler._server.count(project)[0]


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


def test_a_class_that_is_new_is_offered_from_then_on(labeler: LabelStudioLabeler) -> None:
    wanted = brief()
    project = labeler.open_project(wanted)
    assert (
        labeler.open_project(wanted.model_copy(update={"class_names": ["horse", *CLASSES]}), known=project) == project
    )
    with labeler._server.plainly() as client:
        assert client.projects.get(int(project)).label_config == label_config([*CLASSES, "horse"])


def test_a_label_config_that_a_person_changed_is_left_alone_and_a_lacking_class_is_told(
    labeler: LabelStudioLabeler,
) -> None:
    wanted = brief()
    project = int(labeler.open_project(wanted))
    theirs = label_config(CLASSES).replace('showInLine="true"', 'showInLine="false"')
    with labeler._server.plainly() as client:
        client.projects.update(project, label_config=theirs)
    labeler.open_project(wanted)
    with pytest.raises(Incompatible, match=f"'{wanted.title}' does not offer the class 'horse'; add it at http"):
        labeler.open_project(wanted.model_copy(update={"class_names": [*CLASSES, "horse"]}))
    with labeler._server.plainly() as client:
        assert client.projects.get(project).label_config == theirs


def test_a_project_that_was_renamed_is_still_ours_and_one_that_was_deleted_is_made_again(
    labeler: LabelStudioLabeler,
) -> None:
    wanted = brief()
    project = labeler.open_project(wanted)
    with labeler._server.plainly() as client:
        client.projects.update(int(project), title="another name")
    assert labeler.open_project(wanted, known=project) == project
    with labeler._server.plainly() as client:
        client.projects.delete(int(project))
    assert labeler.open_project(wanted, known=project) != project


def test_instructions_show_the_exemplars_as_pictures(labeler: LabelStudioLabeler) -> None:
    examples = [
        Example(sample_id=name, uri=f"https://x.example/{name}.png?a=1&b=2", positive=name != "c") for name in "abc"
    ]
    project = labeler.open_project(brief(examples=examples))
    with labeler._server.plainly() as client:
        told = client.projects.get(int(project)).expert_instruction
    assert re.findall(r'src="([^"]+)"', told) == [f"https://x.example/{name}.png?a=1&amp;b=2" for name in "abc"]
    assert told.index("This is the issue") < told.index("b.png") < told.index("This is not") < told.index("c.png")


def test_awkward_class_names_survive_the_round_trip(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft]
) -> None:
    with labeler._server.plainly() as client:
        found = client.projects.get(int(project))
    assert found.parsed_label_config["label"]["labels"] == CLASSES
    assert found.label_config == label_config(CLASSES)
    assert found.expert_instruction == "<p>Is it &lt;b&gt;?</p>"
    sent = labeler.send(project, drafts)
    for draft, name in zip(drafts, CLASSES, strict=False):
        labeler.submit(sent[draft.key], name, lead_seconds=0)
    assert list(classes(labeler, project).values()) == [[name] for name in CLASSES]


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


def test_where_task_ids_do_not_follow_the_order_all_is_listed(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = labeler._import

    def turned(*given: Any) -> dict[str, str]:
        found = real(*given)
        return dict(zip(found, reversed(list(found.values())), strict=True))

    monkeypatch.setattr(labeler, "_import", turned)
    sent = labeler.send(project, drafts)
    assert {key: ids[0] for key, ids in labeler.present(project).items()} == sent


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


def test_of_two_tasks_with_one_key_the_unanswered_one_goes_and_the_answered_one_stays(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft]
) -> None:
    task = {"data": {"image": "x", "dipnet_key": drafts[0].key, "sample_id": "s", "priority": 0}}
    foreign = {"data": {"image": "x"}}
    with labeler._server.plainly() as client:
        ids = client.projects.import_tasks(int(project), request=[task, task, foreign, foreign], return_task_ids=True)
    first, second = sorted(ids.task_ids)[:2]
    assert labeler.send(project, drafts)[drafts[0].key] == str(first)
    assert count_tasks(labeler, project) == len(drafts) + 2
    with labeler._server.plainly() as client:
        client.projects.import_tasks(int(project), request=[task, task])
    copies = labeler.present(project)[drafts[0].key]
    annotate(labeler, copies[1], result_of("cat"))
    assert labeler.send(project, drafts)[drafts[0].key] == copies[1]
    assert labeler.present(project)[drafts[0].key] == [copies[1]]
    assert str(second) not in copies


def test_two_answered_copies_both_stay_and_are_counted(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft]
) -> None:
    labeler.send(project, drafts)
    task = {"data": {"image": "x", "dipnet_key": drafts[0].key, "sample_id": "s", "priority": 0}}
    with labeler._server.plainly() as client:
        client.projects.import_tasks(int(project), request=[task])
    for copy in labeler.present(project)[drafts[0].key]:
        annotate(labeler, copy, result_of("cat"))
    assert labeler.tidy(project, [draft.key for draft in drafts]) == 1
    assert len(labeler.present(project)[drafts[0].key]) == 2


def test_of_two_projects_with_one_title_the_empty_one_goes_and_what_others_made_stays(
    labeler: LabelStudioLabeler, label_studio: LabelStudioServer
) -> None:
    wanted = brief()
    project = labeler.open_project(wanted)
    with labeler._server.plainly() as client:
        late, filled = (client.projects.create(title=wanted.title, description=wanted.instructions) for _ in range(2))
        client.projects.import_tasks(filled.id, request=[{"data": {"image": "x"}}])
        theirs = client.projects.create(title=wanted.title, description="another one")
        open_labeler(label_studio, transport=Breaking(f"/api/projects/{late.id}/", 1, reset, "DELETE")).tidy(
            project, []
        )
        left = [one.id for one in client.projects.list(title=wanted.title)]
    assert sorted(left) == [int(project), filled.id, theirs.id]


def test_a_census_counts_ours_and_others_apart(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft]
) -> None:
    sent = labeler.send(project, drafts)
    with labeler._server.plainly() as client:
        foreign = client.tasks.create(project=int(project), data={"image": "x"})
    annotate(labeler, str(foreign.id), result_of("cat"))
    for draft in drafts[:2]:
        annotate(labeler, sent[draft.key], result_of("cat"))
        annotate(labeler, sent[draft.key], [], was_cancelled=True)
    annotate(labeler, sent[drafts[2].key], [], was_cancelled=True)
    found = labeler.census(project)
    assert (found.ours, found.foreign, found.answers, found.skipped_items) == (6, 1, 2, 3)


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
    assert {key: (one.state, one.class_names, one.wrong) for key, (one,) in found.items()} == {
        labelled.key: (RequestState.LABELLED, ["cat"], ""),
        skipped.key: (RequestState.SKIPPED, [], ""),
        prefilled.key: (RequestState.SKIPPED, [], ""),
        empty.key: (RequestState.EMPTY, [], ""),
        strange.key: (RequestState.LABELLED, [], "it answers 'other', which was not asked"),
    }
    (answer,) = found[labelled.key]
    assert (answer.lead_seconds, answer.annotator) == (2.5, "dipnet@localhost")
    assert abs(answer.answered_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert labeler.pending(project) == [(sent[silent.key], silent.sample_id)]


def test_every_answer_to_an_item_comes_back_as_it_stands(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft]
) -> None:
    task = labeler.send(project, drafts[:1])[drafts[0].key]
    given = [annotate(labeler, task, result_of(name)).id for name in ("cat", "<neither>")]
    given.append(annotate(labeler, task, result_of("cat"), was_cancelled=True).id)
    given.append(annotate(labeler, task, result_of("no such class", "cat")).id)
    found = {one.external_id: one.class_names for one in answers(labeler, project)[drafts[0].key]}
    assert found == dict(zip(map(str, given), (["cat"], ["<neither>"], [], ["cat", "no such class"]), strict=True))


def test_a_poll_brings_corrections_and_skips_and_nothing_older_that_is_counted_right(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.labelstudio_connection.PAGE", 2)
    sent = labeler.send(project, drafts)
    first = annotate(labeler, sent[drafts[0].key], result_of("cat"))
    annotate(labeler, sent[drafts[1].key], result_of("cat"))
    annotate(labeler, sent[drafts[2].key], [], was_cancelled=True)
    seen = [item for items in labeler.changes(project, waiting={}, settled=None) for item in items]
    assert len(seen) == 3
    mark = max(item.changed_at for item in seen)
    settled = Settled(since=mark - timedelta(minutes=1), until=mark, answered=2, skipped=1)
    assert answers(labeler, project, settled) == {}
    with labeler._server.plainly() as client:
        client.annotations.update(first.id, result=result_of("<neither>"))
    annotate(labeler, sent[drafts[3].key], [], was_cancelled=True)
    settled = settled.model_copy(update={"answered": 1})  # the corrected one has moved on
    found = answers(labeler, project, settled)
    assert {key: one.class_names for key, (one,) in found.items()} == {drafts[0].key: ["<neither>"], drafts[3].key: []}
    assert found[drafts[0].key][0].external_id == str(first.id)
    assert found[drafts[0].key][0].answered_at > mark
    # One that was written late, with a time before the mark, is noticed by the count, and then all of that minute comes.
    assert len(answers(labeler, project, settled.model_copy(update={"answered": 0}))) == 4


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


def test_asking_again_opens_an_item_that_was_done(
    labeler: LabelStudioLabeler, project: str, drafts: list[RequestDraft]
) -> None:
    task = labeler.send(project, drafts[:1])[drafts[0].key]
    labeler.submit(task, "cat", lead_seconds=1)
    assert (task_of(labeler, task).overlap, task_of(labeler, task).is_labeled) == (1, True)
    labeler.ask_again(project, {task: 2})
    assert (task_of(labeler, task).overlap, task_of(labeler, task).is_labeled) == (2, False)


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
    (label_studio.files_root / "x.png").write_bytes(RED_DOT)
    labeler = open_labeler(label_studio, media=LocalFiles(above))
    with pytest.raises(Unavailable, match=r"does not serve the images .*cannot be the same as.*_DOCUMENT_ROOT="):
        labeler.send(project, drafts_of(uuid4().hex, uri=str(label_studio.files_root / "x.png")))
    assert count_tasks(labeler, project) == 0


def test_an_image_that_label_studio_serves_is_linked_and_any_other_is_refused(tmp_path: Path) -> None:
    linked = LocalFiles(tmp_path)
    assert linked.of_request("k", "https://x.example/a.png") == "https://x.example/a.png"
    assert linked.of_request("k", str(tmp_path / "served/../served/a b.png")) == f"{LOCAL_FILES}served/a%20b.png"
    assert normal(Path("x/../y")) == Path.cwd() / "y"
    # Label Studio serves folders below its root, but not the root itself.
    for media, uri in ((linked, "s3://b/a.png"), (linked, str(tmp_path / "x.png")), (LocalFiles(None), "/a/b.png")):
        with pytest.raises(BadInput, match=r"could not see '.*png'; run `dipnet receiver` and set DIPNET_RECEIVER_URL"):
            media.of_request("k", uri)


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
    images = f"files below {label_studio.files_root}, served by Label Studio"
    assert labeler.check() == {"version": RELEASE, "user": "dipnet@localhost", "images": images}
    sent = labeler.send(project, drafts[:1])
    labeler.submit(sent[drafts[0].key], "cat", lead_seconds=0)
    assert classes(labeler, project) == {drafts[0].key: ["cat"]}


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
        LabelStudioLabeler(url="http://127.0.0.1:9", token=SecretStr("gehéim\n1"), media=LocalFiles(None))
    assert "DIPNET_LABEL_STUDIO_TOKEN" in str(caught.value)
    assert "heim" not in str(caught.value)


def test_a_server_that_is_down_is_one_clear_line() -> None:
    labeler = LabelStudioLabeler(url="http://127.0.0.1:9", token=SecretStr("0" * 40), media=LocalFiles(None))
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
            LabelStudioLabeler(url=url, token=SecretStr(token), media=LocalFiles(None)).check()
        assert url in str(caught.value)
        assert token not in str(caught.value)


def test_a_version_that_is_too_old_and_files_that_are_not_served_are_told(label_studio: LabelStudioServer) -> None:
    class Older(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path.rstrip("/").endswith("/version"):
                return httpx.Response(200, json={"release": "1.8.2"}, request=request)
            return super().handle_request(request)

    class Serving(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path.startswith("/data/local-files"):
                return httpx.Response(403, request=request)
            return super().handle_request(request)

    with pytest.raises(Incompatible, match=r"has version 1\.8\.2; dipnet needs 1\.20 or newer"):
        open_labeler(label_studio, transport=Older()).check()
    with pytest.raises(Unavailable, match=r"does not serve the images .*HTTP 403.*SERVING_ENABLED=true"):
        open_labeler(label_studio, transport=Serving()).check()


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
