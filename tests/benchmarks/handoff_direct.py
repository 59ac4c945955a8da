"""Label Studio as annotators and auditors see it: its REST API, plainly, without dipnet's client or a broken way."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import httpx
from pydantic import SecretStr

COLLEAGUE = "colleague@localhost"
FOREIGN = ({"image": "https://images.example/foreign-1.jpg"}, {"image": "https://images.example/foreign-2.jpg"})
PAGE = 500


class Annotation(NamedTuple):
    """What an auditor reads of one annotation."""

    id: str
    skipped: bool
    classes: tuple[str, ...]
    updated_at: str


class Task(NamedTuple):
    """What an auditor reads of one task."""

    id: int
    data: dict[str, Any]
    predictions: list[tuple[str, float, tuple[str, ...]]]  # model version, score, classes
    annotations: list[Annotation]
    overlap: int

    @property
    def key(self) -> str:
        """Our key; empty for a task of somebody else."""
        return str(self.data.get("dipnet_key", ""))


class Direct:
    """One Label Studio, asked directly."""

    def __init__(self, url: str, token: SecretStr) -> None:
        headers = {"Authorization": f"Token {token.get_secret_value()}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=120.0, trust_env=False)

    def __enter__(self) -> Direct:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def projects(self, campaign: str) -> list[int]:
        """The projects of a campaign, oldest first: there is to be one."""
        found = self._ask("GET", "/api/projects/", params={"title": f"dipnet: {campaign}", "page_size": 100})["results"]
        return sorted(int(one["id"]) for one in found if one["title"] == f"dipnet: {campaign}")

    def tasks(self, project: int) -> list[Task]:
        """Everything that a project holds."""
        found: list[Task] = []
        total = 1
        while len(found) < total:
            asked = {"project": project, "fields": "all", "page_size": PAGE, "page": len(found) // PAGE + 1}
            page = self._ask("GET", "/api/tasks/", params=asked)
            total = page["total"]
            found += [_task(one) for one in page["tasks"]]
            if not page["tasks"]:
                break
        return found

    def put_foreign(self, project: int) -> None:
        """Two tasks that dipnet knows nothing of."""
        self.put(project, FOREIGN)

    def put(self, project: int, data: Iterable[dict[str, Any]]) -> None:
        """Tasks with these data."""
        self._ask("POST", f"/api/projects/{project}/import", json=[{"data": one} for one in data])

    def answer(self, task: int, *classes: str, skipped: bool = False, by: int | None = None) -> str:
        """Annotate a task, as ourselves or as another user; the id of the annotation."""
        body = {"result": _result(classes), "was_cancelled": skipped, "lead_time": 3.0}
        made = self._ask("POST", f"/api/tasks/{task}/annotations/", json=body | ({"completed_by": by} if by else {}))
        return str(made["id"])

    def correct(self, annotation: str, *classes: str) -> None:
        """Change an annotation."""
        self._ask("PATCH", f"/api/annotations/{annotation}/", json={"result": _result(classes)})

    def withdraw(self, annotation: str) -> None:
        """Delete an annotation."""
        self._ask("DELETE", f"/api/annotations/{annotation}/")

    def delete_task(self, task: int) -> None:
        """Delete a task."""
        self._ask("DELETE", f"/api/tasks/{task}/")

    def set_overlap(self, task: int, overlap: int) -> None:
        """Let so many annotators answer a task."""
        self._ask("PATCH", f"/api/tasks/{task}/", json={"overlap": overlap})

    def delete_project(self, project: int) -> None:
        """Delete a project and all in it."""
        self._ask("DELETE", f"/api/projects/{project}/")

    def accept_predictions(self, project: int, tasks: Sequence[int]) -> None:
        """Answer tasks with their pre-annotations, by the bulk action of the Data Manager."""
        wanted = {"selectedItems": {"all": False, "included": list(tasks)}}
        action = {"id": "predictions_to_annotations", "project": project}
        self._ask("POST", "/api/dm/actions/", params=action, json=wanted)

    def colleague(self) -> int:
        """The id of a second annotator, who is made when there is none."""
        users = self._ask("GET", "/api/users/")
        known = [one["id"] for one in users if one["email"] == COLLEAGUE]
        made = {"email": COLLEAGUE, "username": "colleague", "password": "not-secret-1"}
        return int(known[0] if known else self._ask("POST", "/api/users/", json=made)["id"])

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        answer = self._http.request(method, path, **more)
        answer.raise_for_status()
        return json.loads(answer.content) if answer.content else None


def _task(one: dict[str, Any]) -> Task:
    predictions = [(each["model_version"], each["score"], _classes(each["result"])) for each in one["predictions"]]
    annotations = [
        Annotation(str(each["id"]), bool(each["was_cancelled"]), _classes(each["result"]), each["updated_at"])
        for each in one["annotations"]
    ]
    return Task(
        int(one["id"]), one["data"], predictions, sorted(annotations, key=lambda each: int(each.id)), one["overlap"]
    )


def _classes(result: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(name for item in result for name in item["value"]["choices"])


def _result(classes: Sequence[str]) -> list[dict[str, Any]]:
    value = {"choices": list(classes)}
    return [{"from_name": "label", "to_name": "image", "type": "choices", "value": value}] if classes else []
