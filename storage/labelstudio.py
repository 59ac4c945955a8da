"""Label Studio, through its SDK: projects by title, tasks by our key, answers by time of change."""

from __future__ import annotations

import base64
import json
import mimetypes
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import httpx
from pydantic import SecretStr

from models.errors import BadInput, Incompatible, Unavailable
from models.settings import Settings
from models.states import RequestState
from models.values import Answer, ProjectBrief, RequestDraft

KEY = "dipnet_key"
CONTROL, IMAGE = "label", "image"
IMPORT_AT_ONCE = 500
PAGE = 500
OVERLAP = timedelta(seconds=60)  # clocks differ; an answer that is read twice is stored once
ATTEMPTS = 4
INLINE_BYTES = 1_000_000
NEVER_REPEAT: Any = {
    "max_retries": 0
}  # the SDK repeats a POST on 5xx and on a dropped connection, which doubles imports


class LabelStudioLabeler:
    """Label requests as tasks of a Label Studio project; each carries our key in its data."""

    name = "label-studio"

    def __init__(
        self, *, url: str, token: SecretStr, media: Callable[[str], str], files_root: Path | None = None
    ) -> None:
        """`media` turns an image's URI into what a browser can show. Nothing is contacted yet."""
        self._url, self._token, self._media, self._files_root = url.rstrip("/"), token, media, files_root

    @cached_property
    def _client(self) -> Any:
        from label_studio_sdk import LabelStudio  # seconds to import, and most commands never need it

        client: Any = LabelStudio  # its own signature is untyped
        return client(base_url=self._url, api_key=self._token.get_secret_value(), timeout=120)

    @contextmanager
    def _speaking_plainly(self) -> Iterator[None]:
        """Turn the SDK's and the transport's errors into ours; bodies are left out, since they can hold tokens."""
        from label_studio_sdk.core.api_error import ApiError

        try:
            yield
        except ApiError as error:
            if error.status_code in (401, 403):
                raise Unavailable(
                    f"Label Studio at {self._url} refused the token; copy a valid one from its Account & Settings page "
                    "into DIPNET_LABEL_STUDIO_TOKEN"
                ) from None
            detail = error.body.get("detail", "") if isinstance(error.body, dict) and error.status_code == 400 else ""
            raise Unavailable(
                f"Label Studio at {self._url} answered {error.status_code} {detail}; see its log, or correct "
                "DIPNET_LABEL_STUDIO_URL"
            ) from None
        except httpx.HTTPError as error:
            raise Unavailable(
                f"Label Studio at {self._url} does not answer ({type(error).__name__}); start it, or correct "
                "DIPNET_LABEL_STUDIO_URL"
            ) from None
        except (json.JSONDecodeError, AttributeError, ValueError) as error:
            # What the SDK raises when the answer is a page of something else, or the token is malformed.
            raise Unavailable(
                f"what answers at {self._url} does not speak Label Studio's language ({type(error).__name__}); "
                "correct DIPNET_LABEL_STUDIO_URL and DIPNET_LABEL_STUDIO_TOKEN"
            ) from None

    def check(self) -> dict[str, str]:
        """Version and user. Raises Unavailable."""
        with self._speaking_plainly():
            user = self._client.users.whoami()
            version = self._client.versions.get()
        return {"url": self._url, "version": str(version.release or "unknown"), "user": str(user.email)}

    def open_project(self, brief: ProjectBrief) -> str:
        """The project with this title, made when there is none. Raises Incompatible when it lacks a class."""
        with self._speaking_plainly():
            for project in self._client.projects.list(page_size=PAGE):
                if project.title == brief.title:
                    _require_classes(project, brief)
                    return str(project.id)
            made = self._client.projects.create(
                title=brief.title,
                description=brief.instructions,
                label_config=label_config(brief.class_names),
                expert_instruction=brief.instructions,
                show_instruction=True,
                show_skip_button=True,
                request_options=NEVER_REPEAT,
            )
        return str(made.id)

    def send(self, project: str, drafts: Sequence[RequestDraft]) -> dict[str, str]:
        """Import what the project does not hold. A lost answer is not repeated blindly: the project is asked first."""
        wanted = {draft.key: draft for draft in drafts}
        self._share(project, {str(Path(draft.uri).parent) for draft in drafts})
        for attempt in range(ATTEMPTS):
            held = self._tasks_by_key(project)
            missing = [draft for key, draft in wanted.items() if key not in held]
            if not missing:
                return {key: held[key] for key in wanted}
            try:
                self._import(project, missing)
            except Unavailable:
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(2**attempt)
        raise Unavailable(f"Label Studio at {self._url} took {len(missing)} tasks but does not list them; see its log")

    def answers(self, project: str, *, waiting: Mapping[str, str], since: datetime | None) -> Iterator[Answer]:  # noqa: ARG002
        """Every task of ours that changed since then and has an answer; tasks without our key are left alone."""
        query = None
        if since is not None:
            moment = (since - OVERLAP).astimezone(UTC).isoformat().replace("+00:00", "Z")
            item = {"filter": "filter:tasks:updated_at", "operator": "greater", "type": "Datetime", "value": moment}
            query = json.dumps({"filters": {"conjunction": "and", "items": [item]}})
        with self._speaking_plainly():
            for task in self._client.tasks.list(project=int(project), query=query, fields="all", page_size=PAGE):
                key = (task.data or {}).get(KEY)
                found = newest_answer(str(key), task.annotations or []) if key else None
                if found is not None:
                    yield found

    def pending(self, project: str) -> list[tuple[int, str]]:
        """(task id, sample id) of our tasks that nobody has answered."""
        with self._speaking_plainly():
            tasks = list(self._client.tasks.list(project=int(project), fields="all", page_size=PAGE))
        ours = [task for task in tasks if (task.data or {}).get(KEY) and not task.annotations]
        return [(int(task.id), str(task.data["sample_id"])) for task in ours]

    def submit(self, task_id: int, class_name: str, *, lead_seconds: float) -> None:
        """Answer a task as an annotator would."""
        result = [{"from_name": CONTROL, "to_name": IMAGE, "type": "choices", "value": {"choices": [class_name]}}]
        with self._speaking_plainly():
            self._client.annotations.create(
                task_id, result=result, lead_time=lead_seconds, request_options=NEVER_REPEAT
            )

    def url(self, project: str) -> str:
        """The project's page."""
        return f"{self._url}/projects/{project}"

    def _tasks_by_key(self, project: str) -> dict[str, str]:
        """{our key: task id}; of two tasks with one key the older counts."""
        held: dict[str, int] = {}
        with self._speaking_plainly():
            for task in self._client.tasks.list(project=int(project), include="id,data", page_size=PAGE):
                key = (task.data or {}).get(KEY)
                if key is not None:
                    held[key] = min(int(task.id), held.get(key, int(task.id)))
        return {key: str(task_id) for key, task_id in held.items()}

    def _share(self, project: str, folders: set[str]) -> None:
        """Let the project show the local files of these folders: without a storage that covers it, a link answers 404."""
        shared = [folder for folder in sorted(folders) if is_shared(folder, self._files_root)]
        if not shared:
            return
        storages = self._client.import_storage.local
        with self._speaking_plainly():
            held = {str(storage.path) for storage in storages.list(project=int(project))}
            for folder in (folder for folder in shared if folder not in held):
                storages.create(
                    project=int(project),
                    path=folder,
                    title=f"dipnet: {Path(folder).name}"[:100],
                    use_blob_urls=True,
                    request_options=NEVER_REPEAT,
                )

    def _import(self, project: str, drafts: Sequence[RequestDraft]) -> None:
        for start in range(0, len(drafts), IMPORT_AT_ONCE):
            tasks: Any = [as_task(draft, self._media(draft.uri)) for draft in drafts[start : start + IMPORT_AT_ONCE]]
            with self._speaking_plainly():
                self._client.projects.import_tasks(int(project), request=tasks, request_options=NEVER_REPEAT)


def label_config(class_names: Sequence[str]) -> str:
    """A single choice among these classes beside the image."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=IMAGE, value="$image", zoom="true")
    choices = ElementTree.SubElement(view, "Choices", name=CONTROL, toName=IMAGE, choice="single", showInLine="true")
    for class_name in class_names:
        ElementTree.SubElement(choices, "Choice", value=class_name)
    return ElementTree.tostring(view, encoding="unicode")


def as_task(draft: RequestDraft, image: str) -> dict[str, Any]:
    """A draft as Label Studio imports it, with the model's answer as a pre-annotation where there is one."""
    task: dict[str, Any] = {
        "data": {"image": image, KEY: draft.key, "sample_id": draft.sample_id, "priority": draft.priority}
    }
    if draft.predicted_class:
        value = {"choices": [draft.predicted_class]}
        task["predictions"] = [
            {
                "model_version": draft.model_version,
                "score": draft.predicted_probability,
                "result": [{"from_name": CONTROL, "to_name": IMAGE, "type": "choices", "value": value}],
            }
        ]
    return task


def newest_answer(key: str, annotations: Sequence[Any]) -> Answer | None:
    """What a task's annotations say: the newest answer that is no skip, else the newest skip.

    A skip keeps the result that the pre-annotation filled in, so `was_cancelled` is looked at before the result.
    """
    rows = [_as_dict(annotation) for annotation in annotations]
    rows.sort(key=lambda row: (not row.get("was_cancelled"), str(row.get("updated_at")), row.get("id") or 0))
    if not rows:
        return None
    row = rows[-1]
    chosen = [name for item in row.get("result") or [] for name in (item.get("value") or {}).get("choices", [])]
    if row.get("was_cancelled"):
        state, chosen = RequestState.SKIPPED, []
    else:
        state = RequestState.LABELLED if chosen else RequestState.EMPTY
    return Answer(
        key=key,
        external_id=str(row["id"]),
        state=state,
        class_name=", ".join(chosen),
        annotator=_who(row.get("completed_by")),
        lead_seconds=float(row.get("lead_time") or 0),
        answered_at=_when(row.get("updated_at") or row.get("created_at")),
    )


def media_resolver(settings: Settings, presign: Callable[[str], str]) -> Callable[[str], str]:
    """What shows an image to a browser: a signed URL for S3, a local-files link under the shared folder, or the bytes."""

    def resolve(uri: str) -> str:
        if uri.startswith("s3://"):
            return presign(uri)
        path, root = Path(uri), settings.label_studio_files_root
        if root is not None and is_shared(str(path.parent), root):
            return f"/data/local-files/?d={quote(path.relative_to(root).as_posix())}"
        if path.stat().st_size > INLINE_BYTES:
            raise BadInput(
                f"'{uri}' is too large to send; share its folder with Label Studio: DIPNET_LABEL_STUDIO_FILES_ROOT"
            )
        kind = mimetypes.guess_type(uri)[0] or "image/png"
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"

    return resolve


def is_shared(folder: str, root: Path | None) -> bool:
    """Whether Label Studio can serve a folder's files: it must lie below the root, which itself is refused."""
    return root is not None and Path(folder) != root and Path(folder).is_relative_to(root)


def _require_classes(project: Any, brief: ProjectBrief) -> None:
    offered = {choice.get("value") for choice in ElementTree.fromstring(project.label_config).iter("Choice")}  # noqa: S314
    if missing := [name for name in brief.class_names if name not in offered]:
        raise Incompatible(
            f"Label Studio project '{brief.title}' does not offer {', '.join(missing)}; add the choice in its labelling "
            "interface, or run the campaign under another name"
        )


def _as_dict(annotation: Any) -> dict[str, Any]:
    row: dict[str, Any] = annotation if isinstance(annotation, dict) else annotation.dict()
    return row


def _who(completed_by: Any) -> str:
    return (
        str(completed_by.get("email") or completed_by.get("id"))
        if isinstance(completed_by, dict)
        else str(completed_by)
    )


def _when(moment: Any) -> datetime:
    found = moment if isinstance(moment, datetime) else datetime.fromisoformat(str(moment).replace("Z", "+00:00"))
    return found if found.tzinfo else found.replace(tzinfo=UTC)
