"""What Label Studio holds twice, since it did something after we had stopped waiting for it: one stays, no answer goes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from storage.labelstudio_connection import Connection, Task

log = logging.getLogger("dipnet")


def tidy_projects(server: Connection, ours: int) -> None:
    """Delete what is like our project in all that we gave it when it was made, and holds nothing."""
    kept = server.read(lambda client: client.projects.get(ours))
    like: list[Any] = server.read(lambda client: list(client.projects.list(title=kept.title, page_size=100)))
    for number in [int(one.id) for one in like if one.title == kept.title and int(one.id) != ours]:
        if server.read(lambda client, number=number: _deletes_project(client, number, kept.description)):  # type: ignore[misc]
            log.warning("Label Studio had made project '%s' twice; the empty one, %s, is deleted", kept.title, number)


def keep_one(server: Connection, tasks: Sequence[Task]) -> int:
    """Delete the spare ones of a doubled task; return how many could not be."""
    answered = [task for task in tasks if task["total_annotations"] or task["cancelled_annotations"]]
    spare = [task for task in tasks if task not in answered]
    left = len(answered) or 1
    for task in spare if answered else sorted(spare, key=lambda task: int(task["id"]))[1:]:
        left += not server.read(lambda client, task=task: _deletes_task(client, str(task["id"])))  # type: ignore[misc]
    return left - 1


def _deletes_project(client: Any, number: int, description: str | None) -> bool:
    """Look at it, then delete it if it is empty and says of itself what ours says."""

    def delete() -> bool:
        found = client.projects.get(number)
        if found.task_number != 0 or found.description != description:
            return False
        client.projects.delete(number)
        return True

    return _or_gone(delete)


def _deletes_task(client: Any, task: str) -> bool:
    """Look again, then delete: an annotator may have been quicker."""

    def delete() -> bool:
        if client.tasks.get(task).annotations:
            return False
        client.tasks.delete(task)
        return True

    return _or_gone(delete)


def _or_gone(delete: Callable[[], bool]) -> bool:
    """Whether it deletes; it is gone as well where the answer to an earlier try was lost."""
    from label_studio_sdk.core.api_error import ApiError

    try:
        return delete()
    except ApiError as error:
        if error.status_code != 404:
            raise
        return True
