"""Label Studio as a labeller: projects are known by title, label requests by our own key in their data.

Label Studio does not de-duplicate, and its SDK repeats a POST whose answer was lost. So nothing that adds is ever
repeated blindly here: it is looked up first.
"""

from __future__ import annotations

import base64
import hashlib
import html
import mimetypes
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from xml.etree import ElementTree

import httpx
from pydantic import SecretStr

from models.errors import BadInput, Incompatible, NotFound, Unavailable
from models.settings import Settings
from models.states import RequestState
from models.values import Answer, ProjectBrief, RequestDraft
from storage.labelstudio_connection import READING, Connection, attempts, one_line, query_of

IMAGE, CONTROL, KEY = "image", "label", "dipnet_key"
LOCAL_FILES = "/data/local-files/?d="
TITLE_LENGTH = 50  # Label Studio refuses longer titles
CHUNK = 500  # tasks a request; the server writes them in one transaction
CHUNK_BYTES = 50_000_000  # the server refuses requests above 250 MB
INLINE_BYTES = 1_000_000
OVERLAP = timedelta(seconds=60)  # an answer may be committed after a later one was seen
# `include` also names the fields of what is nested: without `result`, annotations come back as bare ids.
ANSWER_FIELDS = "id,data,annotations,result,was_cancelled,updated_at,lead_time,completed_by,created_username"
MAGIC = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "image/webp"}


class LabelStudioLabeler:
    """People who answer label requests in Label Studio. Every failure there is Unavailable here, in one line.

    `media` turns an image's URI into what a browser can show. `files_root` is Label Studio's local files document root;
    the folders below it that images lie in are registered with the project, since Label Studio serves no others.
    `transport` replaces the way to the server, for tests of what happens when it breaks.
    """

    name = "label-studio"

    def __init__(
        self,
        *,
        url: str,
        token: SecretStr,
        media: Callable[[str], str],
        files_root: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._server, self._media = Connection(url, token, transport), media
        self._files_root = _normal(files_root) if files_root else None

    def open_project(self, brief: ProjectBrief) -> str:
        """The id of the project with this title, made when there is none. Raises Incompatible when it lacks a class."""
        title = _fitting(brief.title)
        with self._server.plainly() as client:
            for may_be_lost in attempts():
                found = self._find_project(title)
                if found is not None:
                    break
                with may_be_lost:
                    client.projects.create(
                        title=title,
                        description=brief.instructions,
                        expert_instruction=html.escape(brief.instructions).replace("\n", "<br>"),
                        show_instruction=True,
                        label_config=label_config(brief.class_names),
                    )
            else:
                raise Unavailable(f"Label Studio at {self._server.url} did not make project '{title}'; try again")
            self._check_classes(found, title, brief.class_names)
        return str(found)

    def send(self, project: str, drafts: Sequence[RequestDraft]) -> dict[str, str]:
        """Import what the project does not hold yet, by our key; return {key: task id} for all drafts."""
        wanted = {draft.key: draft for draft in drafts}
        accepted: set[str] = set()  # what the server took is waited for, never sent again
        with self._server.plainly() as client:
            for may_be_lost in attempts():
                held = self._held(project)
                missing = [draft for key, draft in wanted.items() if key not in held]
                if not missing:
                    break
                tasks = [_task(draft, self._media(draft.uri)) for draft in missing if draft.key not in accepted]
                self._serve_files(project, [task["data"][IMAGE] for task in tasks])
                with may_be_lost:
                    for chunk in _chunks(tasks):
                        client.projects.import_tasks(int(project), request=chunk)
                        accepted |= {task["data"][KEY] for task in chunk}
            else:
                raise Unavailable(
                    f"Label Studio at {self._server.url} still lacks {len(missing)} of {len(wanted)} label requests; "
                    "look at its log, then run again: what is there is not sent twice"
                )
            self._prefill(project, drafts)
        return {key: str(held[key]) for key in wanted}

    def answers(self, project: str, *, waiting: Mapping[str, str], since: datetime | None) -> Iterator[Answer]:  # noqa: ARG002
        """What annotators said in tasks of ours that changed since then, whichever batch they belong to."""
        if since is None:
            query = query_of(
                "or", ("total_annotations", "greater", "Number", 0), ("cancelled_annotations", "greater", "Number", 0)
            )
        else:
            moment = (since - OVERLAP).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            query = query_of("and", ("updated_at", "greater_or_equal", "Datetime", moment))
        for task in self._server.tasks(project, include=ANSWER_FIELDS, query=query):
            key = _key(task)
            answer = _answer(key, task.annotations or []) if key else None
            if answer is not None:
                yield answer

    def url(self, project: str) -> str:
        """Where a person opens the project."""
        return f"{self._server.url}/projects/{project}"

    def check(self) -> dict[str, str]:
        """Version and user, for `dipnet doctor`. Raises Unavailable saying which of URL, server and token is wrong."""
        with self._server.plainly() as client:
            version, user = client.versions.get(), client.users.whoami()
        if not isinstance(version.release, str) or not isinstance(user.email, str):
            raise self._server.stranger()
        return {"version": version.release, "user": user.email}

    def pending(self, project: str) -> list[tuple[str, str]]:
        """(task id, sample id) of our tasks that nobody answered or skipped, in the order they were sent."""
        query = query_of(
            "and", ("total_annotations", "equal", "Number", 0), ("cancelled_annotations", "equal", "Number", 0)
        )
        tasks = self._server.tasks(project, include="id,data", query=query)
        return [(str(task.id), str(task.data["sample_id"])) for task in tasks if _key(task)]

    def submit(self, task_id: str, class_name: str, lead_seconds: float) -> None:
        """Answer a task as an annotator would. Twice is once: Label Studio refuses a second annotation of the same id."""
        from label_studio_sdk.core.api_error import ApiError

        with self._server.plainly() as client:
            for may_be_lost in attempts():
                try:
                    with may_be_lost:
                        client.annotations.create(
                            int(task_id),
                            result=[_choice(class_name)],
                            lead_time=lead_seconds,
                            unique_id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"dipnet:{self._server.url}/tasks/{task_id}")),
                        )
                        return
                except ApiError as error:
                    if error.status_code == 409:
                        return
                    raise
        raise Unavailable(f"Label Studio at {self._server.url} did not take the answer to task {task_id}; try again")

    def _held(self, project: str) -> dict[str, int]:
        """Our keys in the project; the lowest task id where an import doubled."""
        held: dict[str, int] = {}
        for task in self._server.tasks(project, include="id,data"):
            key = _key(task)
            if key:
                held[key] = min(int(task.id), held.get(key, int(task.id)))
        return held

    def _find_project(self, title: str) -> int | None:
        with self._server.plainly() as client:
            listed: Any = client.projects.list(include="id,title", page_size=100, request_options=READING)
            return min((int(project.id) for project in listed if project.title == title), default=None)

    def _check_classes(self, project: int, title: str, class_names: Sequence[str]) -> None:
        with self._server.plainly() as client:
            parsed = client.projects.get(project, request_options=READING).parsed_label_config or {}
        offered = (parsed.get(CONTROL) or {}).get("labels") or []
        lacking = [name for name in class_names if name not in offered]
        if lacking:
            raise Incompatible(
                f"Label Studio's project '{title}' does not offer the class '{lacking[0]}'; add it at "
                f"{self.url(str(project))}/settings/labeling, or give the campaign another name"
            )

    def _serve_files(self, project: str, media: Sequence[str]) -> None:
        """Register the folders of local files with the project, and make sure that the first file is shown."""
        local = [link.removeprefix(LOCAL_FILES) for link in media if link.startswith(LOCAL_FILES)]
        if self._files_root is None or not local:
            return
        from label_studio_sdk.core.api_error import ApiError

        with self._server.plainly() as client:
            storages = client.import_storage.local
            held = {storage.path for storage in storages.list(project=int(project), request_options=READING)}
            for folder in sorted({str(self._files_root / unquote(link).partition("/")[0]) for link in local} - held):
                try:
                    # The filter matches nothing: a click on Sync adds no tasks of its own.
                    storages.create(
                        project=int(project), title="dipnet", path=folder, use_blob_urls=True, regex_filter="(?!)"
                    )
                except ApiError as error:
                    if error.status_code != 400:
                        raise
                    raise self._not_served(one_line((error.body or {}).get("validation_errors"))) from None
        status = self._server.status_of(LOCAL_FILES + local[0])
        if status != 200:
            raise self._not_served(f"HTTP {status} for {LOCAL_FILES}{local[0]}")

    def _not_served(self, why: str) -> Unavailable:
        return Unavailable(
            f"Label Studio at {self._server.url} does not serve the images as local files ({why}); start it with "
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={self._files_root}, or unset DIPNET_LABEL_STUDIO_FILES_ROOT"
        )

    def _prefill(self, project: str, drafts: Sequence[RequestDraft]) -> None:
        """Show the newest model's predictions: Label Studio keeps to the first version that it was ever sent."""
        versions = [draft.model_version for draft in drafts if draft.predicted_class and draft.model_version]
        if versions:
            with self._server.plainly() as client:
                client.projects.update(int(project), model_version=versions[-1], request_options=READING)


def label_config(class_names: Iterable[str]) -> str:
    """Label Studio's description of one image and one choice between these classes."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=IMAGE, value=f"${IMAGE}")
    choices = ElementTree.SubElement(view, "Choices", name=CONTROL, toName=IMAGE, choice="single", showInLine="true")
    for name in class_names:
        ElementTree.SubElement(choices, "Choice", value=name)
    return ElementTree.tostring(view, encoding="unicode")


def media_resolver(settings: Settings, presign: Callable[[str], str]) -> Callable[[str], str]:
    """How images become visible in a browser: signed, linked as local files, or sent inside the label request.

    The function raises BadInput for a local image that is too large to be sent, NotFound for one that is gone.
    """
    root = settings.label_studio_files_root
    served = _normal(root) if root else None

    def media(uri: str) -> str:
        if uri.startswith(("http://", "https://", "data:")):
            return uri
        if uri.startswith("s3://"):
            return presign(uri)
        path = _normal(Path(uri))
        # Label Studio serves folders below its root, but not the root itself.
        if served and path.parent != served and path.is_relative_to(served):
            return LOCAL_FILES + quote(path.relative_to(served).as_posix())
        return _inline(path)

    return media


def _normal(path: Path) -> Path:
    """Absolute and without `..`; links are kept, since Label Studio compares names."""
    return Path(os.path.normpath(path.absolute()))


def _inline(path: Path) -> str:
    """The image as a data URI."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= INLINE_BYTES else b""
    except OSError as error:
        raise NotFound(f"'{path}' cannot be read ({error.strerror}); was it moved or deleted?") from None
    if not data:
        raise BadInput(
            f"'{path}' has {size} bytes, and only 1 to {INLINE_BYTES} are sent inside a label request; "
            "let Label Studio serve a folder above it, and set DIPNET_LABEL_STUDIO_FILES_ROOT to that folder"
        )
    kind = next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), mimetypes.guess_type(path.name)[0])
    if not kind or not kind.startswith("image/"):
        raise BadInput(f"'{path}' is no image that a browser shows; use PNG, JPEG, GIF, WebP or BMP")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _fitting(title: str) -> str:
    """The title as Label Studio takes it: a longer one keeps its beginning and gets a hash of the whole."""
    title = title.strip()
    if len(title) <= TITLE_LENGTH:
        return title
    return f"{title[: TITLE_LENGTH - 9]}-{hashlib.sha256(title.encode()).hexdigest()[:8]}"


def _choice(class_name: str) -> dict[str, Any]:
    return {"from_name": CONTROL, "to_name": IMAGE, "type": "choices", "value": {"choices": [class_name]}}


def _task(draft: RequestDraft, media: str) -> Any:
    """What Label Studio imports: data by which we know it again, and the model's guess."""
    data = {IMAGE: media, KEY: draft.key, "sample_id": draft.sample_id, "priority": draft.priority}
    guess = {
        "model_version": draft.model_version,
        "score": draft.predicted_probability,
        "result": [_choice(draft.predicted_class)],
    }
    return {"data": data, "predictions": [guess] if draft.predicted_class else []}


def _chunks(tasks: Iterable[Any]) -> Iterator[list[Any]]:
    """Tasks in groups that one request may carry."""
    chunk: list[Any] = []
    size = 0
    for task in tasks:
        length = len(task["data"][IMAGE])
        if chunk and (len(chunk) == CHUNK or size + length > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(task)
        size += length
    if chunk:
        yield chunk


def _key(task: Any) -> str:
    """Our key in a task's data; empty for a task that is not ours."""
    key = (task.data or {}).get(KEY)
    return key if isinstance(key, str) else ""


def _answer(key: str, annotations: Sequence[Mapping[str, Any]]) -> Answer | None:
    """The latest answer, else the latest skip. A skip keeps a pre-filled result, so the result is read last."""
    if not annotations:
        return None
    given = [annotation for annotation in annotations if not annotation["was_cancelled"]]
    latest = max(given or annotations, key=lambda annotation: (annotation["updated_at"], annotation["id"]))
    chosen = [name for item in latest["result"] or [] for name in _choices(item)]
    state = RequestState.LABELLED if latest["result"] else RequestState.EMPTY
    if latest["was_cancelled"]:
        state, chosen = RequestState.SKIPPED, []
    return Answer(
        key=key,
        external_id=str(latest["id"]),
        state=state,
        class_name=", ".join(chosen),
        annotator=_annotator(latest),
        lead_seconds=latest["lead_time"] or 0.0,
        answered_at=datetime.fromisoformat(latest["updated_at"]).astimezone(UTC),
    )


def _choices(item: Mapping[str, Any]) -> list[str]:
    """The classes of one item of a result; none when it belongs to another control."""
    value = item.get("value")
    if item.get("from_name") != CONTROL or not isinstance(value, dict):
        return []
    return [str(name) for name in value.get("choices") or []]


def _annotator(annotation: Mapping[str, Any]) -> str:
    """The e-mail address (Label Studio says 'First Last address, id'), else the id."""
    address: str = (annotation.get("created_username") or "").rpartition(", ")[0].rpartition(" ")[2]
    by = annotation.get("completed_by")
    return address or str((by.get("email") or by.get("id")) if isinstance(by, dict) else by)
