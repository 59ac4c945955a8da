"""A labelling tool in memory: what Label Studio does as far as dipnet can tell, with a clock that tests set."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from models.states import RequestState
from models.values import Answer, Census, Item, ProjectBrief, RequestDraft, Settled, Waiting


class Task:
    """One item and its annotations."""

    def __init__(self, number: int, draft: RequestDraft, at: datetime) -> None:
        self.number, self.key, self.draft, self.changed_at = number, draft.key, draft, at
        self.answers: dict[str, Answer] = {}
        self.overlap = 1


class Desk:
    """Items by key and annotators who answer them; `now` is its own clock."""

    name = "desk"

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.links_until: datetime | None = None
        self.briefs: list[ProjectBrief] = []
        self.tasks: list[Task] = []
        self.foreign = 0
        self.renewed: list[str] = []
        self._numbers = 0

    def task(self, key: str) -> Task:
        """The first item with that key."""
        return next(task for task in self.tasks if task.key == key)

    def answer(self, key: str, *names: str, by: str = "ann", state: RequestState | None = None, **more: object) -> str:
        """An annotator answers; the id of the answer."""
        self._numbers += 1
        self._set(self.task(key), str(self._numbers), names, by, state, more)
        return str(self._numbers)

    def correct(self, key: str, number: str, *names: str, state: RequestState | None = None) -> None:
        """The same annotator changes an answer."""
        self._set(self.task(key), number, names, self.task(key).answers[number].annotator, state, {})

    def withdraw(self, key: str, number: str) -> None:
        """The annotator deletes an answer."""
        del self.task(key).answers[number]
        self._touch(self.task(key))

    def _set(
        self,
        task: Task,
        number: str,
        names: tuple[str, ...],
        by: str,
        state: RequestState | None,
        more: Mapping[str, object],
    ) -> None:
        self._touch(task)
        said = state or (RequestState.LABELLED if names else RequestState.EMPTY)
        told = {"external_id": number, "state": said, "class_names": list(names), "annotator": by, "lead_seconds": 6.0}
        task.answers[number] = Answer.model_validate(told | {"answered_at": self.now} | dict(more))

    def _touch(self, task: Task) -> None:
        self.now += timedelta(seconds=1)
        task.changed_at = self.now

    def open_project(self, brief: ProjectBrief, *, known: str = "") -> str:
        self.briefs.append(brief)
        return known or "p1"

    def send(self, project: str, drafts: Sequence[RequestDraft]) -> dict[str, str]:
        for draft in drafts:
            if draft.key not in self.present(project):
                self.add(draft)
        return {draft.key: str(self.task(draft.key).number) for draft in drafts}

    def add(self, draft: RequestDraft) -> None:
        """An import."""
        self.now += timedelta(seconds=1)
        self.tasks.append(Task(len(self.tasks) + 1, draft, self.now))

    def changes(
        self, project: str, *, waiting: Mapping[str, Waiting], settled: Settled | None
    ) -> Iterator[Sequence[Item]]:
        for task in list(self.tasks):
            if task.answers if settled is None else task.changed_at > settled.until:
                given = list(task.answers.values())
                yield [Item(key=task.key, external_id=str(task.number), changed_at=task.changed_at, answers=given)]

    def clock(self) -> datetime:
        return self.now

    def census(self, project: str) -> Census | None:
        given = [[one.state for one in task.answers.values()] for task in self.tasks]
        return Census(
            ours=len(self.tasks),
            foreign=self.foreign,
            answers=sum(state is not RequestState.SKIPPED for states in given for state in states),
            skipped_items=sum(RequestState.SKIPPED in states for states in given),
        )

    def present(self, project: str) -> dict[str, list[str]]:
        held: dict[str, list[str]] = {}
        for task in self.tasks:
            held.setdefault(task.key, []).append(str(task.number))
        return held

    def tidy(self, project: str, keys: Sequence[str]) -> int:
        for key in keys:
            copies = [task for task in self.tasks if task.key == key]
            spare = [task for task in copies if not task.answers]
            for task in spare[0 if len(spare) < len(copies) else 1 :]:
                self.tasks.remove(task)
        return sum(len(ids) - 1 for key, ids in self.present(project).items() if key in keys)

    def ask_again(self, project: str, opinions: Mapping[str, int]) -> None:
        for task in self.tasks:
            task.overlap = opinions.get(str(task.number), task.overlap)

    def renew_links(self, project: str, drafts: Mapping[str, RequestDraft]) -> None:
        self.renewed += [draft.key for draft in drafts.values()]

    def check(self) -> dict[str, str]:
        return {"desk": "here"}

    def url(self, project: str) -> str:
        return f"desk://{project}"
