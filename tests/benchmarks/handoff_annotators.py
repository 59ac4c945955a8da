"""Annotators who remember what they did, so that what dipnet knows afterwards can be held against it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from models.states import RequestState
from tests.benchmarks.handoff_checks import Given, Version
from tests.benchmarks.handoff_direct import Direct, Task


class Annotators:
    """Whoever answers in one project. `states` is what each key's answers amount to; tasks are named by their key."""

    def __init__(self, direct: Direct, project: int) -> None:
        self.direct, self.project = direct, project
        self.tasks: dict[str, Task] = {task.key: task for task in direct.tasks(project) if task.key}
        self.states: dict[str, tuple[RequestState, str]] = dict.fromkeys(self.tasks, (RequestState.PENDING, ""))
        self._keys: dict[str, str] = {}
        self._now: dict[str, Version] = {}  # what an annotation says since the last sync
        self._versions: dict[str, list[Version]] = defaultdict(list)

    def answer(self, key: str, *classes: str, skipped: bool = False, by: int | None = None, task: int = 0) -> str:
        """Answer an item, or one copy of it; the id of the annotation."""
        made = self.direct.answer(task or self.tasks[key].id, *classes, skipped=skipped, by=by)
        self._keys[made] = key
        self._now[made] = _says(classes, skipped=skipped)
        self._settle(key, made)
        return made

    def accept(self, keys: Sequence[str]) -> dict[str, str]:
        """Answer items with their pre-annotations, all at once; the ids of the annotations by key."""
        self.direct.accept_predictions(self.project, [self.tasks[key].id for key in keys])
        wanted, made = set(keys), {}
        for task in self.direct.tasks(self.project):
            if task.key in wanted:
                (annotation,) = task.annotations
                made[task.key] = annotation.id
                self._keys[annotation.id] = task.key
                self._now[annotation.id] = _says(annotation.classes, skipped=False)
                self._settle(task.key, annotation.id)
        return made

    def correct(self, annotation: str, *classes: str) -> None:
        """Change an answer."""
        self.direct.correct(annotation, *classes)
        self._now[annotation] = _says(classes, skipped=False)
        self._settle(self._keys[annotation], annotation)

    def withdraw(self, annotation: str) -> None:
        """Delete an answer."""
        self.direct.withdraw(annotation)
        self._now[annotation] = (RequestState.DELETED, ())
        self.states[self._keys[annotation]] = (RequestState.PENDING, "")

    def delete(self, key: str) -> None:
        """Delete an item that nobody answered."""
        self.direct.delete_task(self.tasks[key].id)
        self.states[key] = (RequestState.DELETED, "")

    def synced(self) -> Given:
        """What dipnet has to know once it has synced now."""
        for annotation, version in self._now.items():
            if self._versions[annotation] or version[0] is not RequestState.DELETED:
                self._versions[annotation].append(version)
        self._now.clear()
        return Given(dict(self.states), dict(self._keys), {name: list(told) for name, told in self._versions.items()})

    def _settle(self, key: str, annotation: str) -> None:
        state, classes = self._now[annotation]
        self.states[key] = (state, classes[0] if classes else "")


def _says(classes: Sequence[str], *, skipped: bool) -> Version:
    """A skip says nothing of what it was pre-filled with."""
    if skipped:
        return RequestState.SKIPPED, ()
    return (RequestState.LABELLED, tuple(classes)) if classes else (RequestState.EMPTY, ())
