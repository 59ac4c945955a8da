"""Label Studio as a labeller: projects are known by title, label requests by our own key in their data.

Label Studio does not de-duplicate, and its SDK repeats a POST whose answer was lost. So nothing that adds is ever
repeated blindly here: it is looked up first. What a server still had in hand when it was looked up, and so is there
twice, is tidied away before anybody answers it.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx
from pydantic import SecretStr

from models.errors import Incompatible, Unavailable
from models.values import Census, Item, ProjectBrief, RequestDraft, Settled, Waiting
from storage.labelstudio_connection import Condition, Connection, Task, attempts
from storage.labelstudio_copies import keep_one, tidy_projects
from storage.labelstudio_files import serve_files, way_of
from storage.labelstudio_format import (
    CONTROL,
    KEY,
    choice,
    fitting,
    instructions,
    item_of,
    key_of,
    label_config,
    task_of,
)
from storage.labelstudio_server import RELEASE
from storage.media import TOKEN_HEADER, Media

log = logging.getLogger("dipnet")

T = TypeVar("T")

CHUNK = 2_500  # tasks a request; the server writes them in one transaction
# `include` also names the fields of what is nested: without `result`, annotations come back as bare ids.
ANSWER_FIELDS = "data,updated_at,annotations,result,was_cancelled,lead_time,completed_by,created_username"
COUNT_FIELDS = "data,total_annotations,cancelled_annotations"
OURS: Condition = (f"data.{KEY}", "empty", "String", False)
FOREIGN: Condition = (f"data.{KEY}", "empty", "String", True)
ANSWERED: Condition = ("total_annotations", "greater", "Number", 0)
SKIPPED: Condition = ("cancelled_annotations", "greater", "Number", 0)
OLDEST = (1, 20)  # older ones are not tried: their filters and tokens differ
HOOK_ACTIONS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED", "TASKS_DELETED")


class LabelStudioLabeler:
    """People who answer label requests in Label Studio. Every failure there is Unavailable here, in one line.

    `media` turns images into links that a browser can open. `hook` gives the address and the token under which a project
    of ours wants to be told of answers; None: it is polled only. `transport` replaces the way to the server, for tests.
    """

    name = "label-studio"

    def __init__(
        self,
        *,
        url: str,
        token: SecretStr,
        media: Media,
        hook: Callable[[int], tuple[str, str]] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._server, self._media, self._hook = Connection(url, token, transport), media, hook

    @property
    def links_until(self) -> datetime | None:
        """When the links that are handed out now expire."""
        return self._media.until

    def open_project(self, brief: ProjectBrief, *, known: str = "") -> str:
        """The id of the project, made when there is none. Raises Incompatible when its answers cannot be ours."""
        title = fitting(brief.title)
        found = int(known) if known and self._is_there(known) else None
        with self._server.plainly() as client:
            for may_be_lost in attempts():
                found = found or self._find_project(title)
                if found is not None:
                    break
                with may_be_lost:
                    client.projects.create(
                        title=title,
                        description=brief.instructions,
                        show_instruction=True,
                        label_config=label_config(brief.class_names, multiple=brief.multiple),
                        maximum_annotations=brief.opinions,
                    )
            else:
                raise Unavailable(f"Label Studio at {self._server.url} did not make project '{title}'; try again")
        self._bring_up(found, title, brief)
        return str(found)

    def send(self, project: str, drafts: Sequence[RequestDraft]) -> dict[str, str]:
        """Import what the project does not hold yet, by our key; return {key: task id} for all drafts."""
        wanted = {draft.key: draft for draft in sorted(drafts, key=lambda draft: draft.priority)}
        links = {draft.key: self._media.of_request(draft.key, draft.uri) for draft in wanted.values()}
        serve_files(self._server, self._media, project, list(links.values()))
        fresh: dict[str, str] = {}  # what the server took: it is waited for, never sent again
        with self._server.plainly() as client:
            for may_be_lost in attempts():
                held = self.present(project)
                missing = [draft for key, draft in wanted.items() if key not in held]
                if not missing:
                    break
                with may_be_lost:
                    for chunk in _chunks([draft for draft in missing if draft.key not in fresh]):
                        fresh |= self._import(client, project, chunk, links)
                    if self._is_all_there(project, before=held, fresh=fresh):
                        held |= {key: [task] for key, task in fresh.items()}
                        break
            else:
                raise Unavailable(
                    f"Label Studio at {self._server.url} still lacks {len(missing)} of {len(wanted)} label requests; "
                    "look at its log, then run again: what is there is not sent twice"
                )
        if any(len(held[key]) > 1 for key in wanted):
            self.tidy(project, list(wanted))
            held = self.present(project)
        self._prefill(project, drafts)
        return {key: held[key][0] for key in wanted}

    def _import(
        self, client: Any, project: str, drafts: Sequence[RequestDraft], links: Mapping[str, str]
    ) -> dict[str, str]:
        """Import drafts by one request; by key the task ids that the server made, '' where it does not say."""
        tasks = [task_of(draft, links[draft.key]) for draft in drafts]
        took = client.projects.import_tasks(int(project), request=tasks, return_task_ids=True)
        ids = getattr(took, "task_ids", None) or [""] * len(tasks)  # the SDK's model does not know the field
        return dict(zip([draft.key for draft in drafts], map(str, ids), strict=True))

    def _is_all_there(self, project: str, *, before: Mapping[str, Sequence[str]], fresh: Mapping[str, str]) -> bool:
        """Whether the project holds exactly what it held and what it took, and the order of its task ids is that of ours.

        To list all takes half as long as to import it, and the first and the last of each import show whether ids follow
        the order. Where they do not, or where something was lost on the way, all is listed.
        """
        edges = {fresh[key]: key for chunk in _chunks(list(fresh)) for key in (chunk[0], chunk[-1])}
        if "" in edges or self._server.count(project, OURS)[0] != sum(map(len, before.values())) + len(fresh):
            return False
        pages = self._server.pages(
            project, include="data", conditions=[("id", "in_list", "Number", list(map(int, edges)))]
        )
        return {str(task["id"]): key_of(task) for page in pages for task in page} == edges

    def changes(
        self,
        project: str,
        *,
        waiting: Mapping[str, Waiting],  # noqa: ARG002
        settled: Settled | None,
    ) -> Iterator[Sequence[Item]]:
        """Tasks of ours that changed, a page at a time; whichever batch they belong to."""
        ways: list[list[Condition]] = [[ANSWERED], [SKIPPED]]
        if settled is not None:
            late = not self._counts(project, settled)
            ways = [[_moment(settled.since, "greater_or_equal") if late else _moment(settled.until, "greater")]]
        for conditions in ways:
            for page in self._server.pages(project, include=ANSWER_FIELDS, conditions=conditions):
                yield [item_of(task) for task in page if key_of(task)]

    def _counts(self, project: str, settled: Settled) -> bool:
        """Whether there are as many changed tasks within as are stored."""
        within = [OURS, _moment(settled.since, "greater_or_equal"), _moment(settled.until, "less_or_equal")]
        found = [self._server.count(project, kind, *within)[0] for kind in (ANSWERED, SKIPPED)]
        return found == [settled.answered, settled.skipped]

    def clock(self) -> datetime:
        """The time of its answer's head, to the second below."""
        return self._server.time()

    def census(self, project: str) -> Census:
        """Three quick counts."""
        ours, answers = self._server.count(project, OURS)
        return Census(
            ours=ours,
            foreign=self._server.count(project, FOREIGN)[0],
            answers=answers,
            skipped_items=self._server.count(project, OURS, SKIPPED)[0],
        )

    def present(self, project: str) -> dict[str, list[str]]:
        """Task ids by our key; several where an import doubled, the oldest first."""
        held: dict[str, list[str]] = defaultdict(list)
        for page in self._server.pages(project, include="data", conditions=[OURS], size=2_000):
            for task in page:
                if key_of(task):
                    held[key_of(task)].append(str(task["id"]))
        return dict(held)

    def tidy(self, project: str, keys: Sequence[str]) -> int:
        """Delete tasks that are there twice and that nobody answered; the answered, else the oldest, stays.

        An empty project that was made twice, because its making was answered too late for us, goes in any case.
        """
        tidy_projects(self._server, int(project))
        if not keys:
            return 0
        wanted, copies = set(keys), defaultdict[str, list[Task]](list)
        for page in self._server.pages(project, include=COUNT_FIELDS, conditions=[OURS]):
            for task in page:
                if key_of(task) in wanted:
                    copies[key_of(task)].append(task)
        return sum(keep_one(self._server, tasks) for tasks in copies.values() if len(tasks) > 1)

    def ask_again(self, project: str, opinions: Mapping[str, int]) -> None:  # noqa: ARG002
        """Raise the overlap of tasks, and open them again: Label Studio offers none that it once called labelled."""
        for task, wanted in opinions.items():
            self._update(task, overlap=wanted, is_labeled=False)

    def renew_links(self, project: str, drafts: Mapping[str, RequestDraft]) -> None:
        """Write the tasks' data anew, with a fresh link; twice is once."""
        for task, draft in drafts.items():
            link = self._media.of_request(draft.key, draft.uri)
            data = task_of(draft, link)["data"]
            self._update(task, data=data)
        del project

    def url(self, project: str) -> str:
        """Where a person opens the project."""
        return f"{self._server.url}/projects/{project}"

    def check(self) -> dict[str, str]:
        """Version, user and images, for `dipnet doctor`. Raises Unavailable saying which of URL, server and token is wrong.

        Raises Incompatible for a version that is older than what dipnet knows.
        """
        with self._server.plainly() as client:
            version, user = client.versions.get(), client.users.whoami()
        if not isinstance(version.release, str) or not isinstance(user.email, str):
            raise self._server.stranger()
        if _numbers(version.release) < OLDEST:
            raise Incompatible(
                f"Label Studio at {self._server.url} has version {version.release}; dipnet needs "
                f"{'.'.join(map(str, OLDEST))} or newer, and is tried with {RELEASE}: upgrade it"
            )
        return {"version": version.release, "user": user.email, "images": way_of(self._server, self._media)}

    def pending(self, project: str) -> list[tuple[str, str]]:
        """(task id, sample id) of our tasks that nobody answered or skipped, in the order they were sent."""
        nobody: list[Condition] = [
            ("total_annotations", "equal", "Number", 0),
            ("cancelled_annotations", "equal", "Number", 0),
        ]
        pages = self._server.pages(project, include="data", conditions=nobody)
        return [(str(task["id"]), str(task["data"]["sample_id"])) for page in pages for task in page if key_of(task)]

    def submit(self, task_id: str, class_name: str, lead_seconds: float) -> None:
        """Answer a task as an annotator would. Twice is once: Label Studio refuses a second annotation of the same id."""
        from label_studio_sdk.core.api_error import ApiError

        with self._server.plainly() as client:
            for may_be_lost in attempts():
                try:
                    with may_be_lost:
                        client.annotations.create(
                            int(task_id),
                            result=[choice([class_name])],
                            lead_time=lead_seconds,
                            unique_id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"dipnet:{self._server.url}/tasks/{task_id}")),
                        )
                        return
                except ApiError as error:
                    if error.status_code == 409:
                        return
                    raise
        raise Unavailable(f"Label Studio at {self._server.url} did not take the answer to task {task_id}; try again")

    def _update(self, task: str, **changes: Any) -> None:
        """Change a task; one that a person deleted meanwhile needs no change."""
        from label_studio_sdk.core.api_error import ApiError

        def ask(client: Any) -> None:
            try:
                client.tasks.update(task, **changes)
            except ApiError as error:
                if error.status_code != 404:
                    raise

        self._server.read(ask)

    def _is_there(self, project: str) -> bool:
        from label_studio_sdk.core.api_error import ApiError

        def ask(client: Any) -> bool:
            try:
                client.projects.get(int(project))
            except ApiError as error:
                if error.status_code == 404:
                    return False
                raise
            return True

        return self._server.read(ask)

    def _find_project(self, title: str) -> int | None:
        def ask(client: Any) -> int | None:
            listed = client.projects.list(include="id,title", page_size=100)
            return min((int(project.id) for project in listed if project.title == title), default=None)

        return self._server.read(ask)

    def _bring_up(self, project: int, title: str, brief: ProjectBrief) -> None:
        """Offer classes that are new, show the instructions as they are now, and ask to be told of answers."""
        links = {one.sample_id: self._media.of_example(brief.id, one.sample_id, one.uri) for one in brief.examples}
        serve_files(self._server, self._media, str(project), list(links.values()))
        # Label Studio serves what it serves itself under its own address, and a relative link would lead elsewhere.
        shown = {name: self._server.url + link if link.startswith("/") else link for name, link in links.items()}
        found = self._server.read(lambda client: client.projects.get(project))
        changes: dict[str, Any] = {}
        if (told := instructions(brief, shown)) != found.expert_instruction:
            changes["expert_instruction"] = told
        offered = ((found.parsed_label_config or {}).get(CONTROL) or {}).get("labels") or []
        lacking = [name for name in brief.class_names if name not in offered]
        ours = found.label_config == label_config(offered, multiple=brief.multiple)
        if ours and lacking:
            changes["label_config"] = label_config([*offered, *lacking], multiple=brief.multiple)
        elif lacking:
            raise Incompatible(
                f"Label Studio's project '{title}' does not offer the class '{lacking[0]}'; add it at "
                f"{self.url(str(project))}/settings/labeling, or give the campaign another name"
            )
        if changes:
            self._server.read(lambda client: client.projects.update(project, **changes))
        self._ensure_hook(project, brief)

    def _ensure_hook(self, project: int, brief: ProjectBrief) -> None:
        """Have the project tell of answers. Where it will not, polling does as well."""
        if self._hook is None or not brief.id:
            return
        from label_studio_sdk.core.api_error import ApiError

        url, token = self._hook(brief.id)
        headers = {TOKEN_HEADER: token}
        known = [hook for hook in self._server.read(lambda client: client.webhooks.list(project=str(project)))
                 if hook.url == url]  # fmt: skip
        if any(hook.headers == headers for hook in known):
            return
        with self._server.plainly() as client:
            try:
                for hook in known:
                    client.webhooks.delete(int(hook.id))
                # Without its payload: that would hold the project's token.
                client.webhooks.create(
                    project=project,
                    url=url,
                    headers=headers,
                    send_payload=False,
                    send_for_all_actions=False,
                    actions=HOOK_ACTIONS,
                )
            except ApiError as error:
                log.warning("Label Studio takes no webhook (HTTP %s); answers come by polling", error.status_code)

    def _prefill(self, project: str, drafts: Sequence[RequestDraft]) -> None:
        """Show the newest model's predictions: Label Studio keeps to the first version that it was ever sent."""
        versions = [draft.model_version for draft in drafts if draft.predicted_class and draft.model_version]
        if versions:
            number = int(project)
            self._server.read(lambda client: client.projects.update(number, model_version=versions[-1]))


def _numbers(release: str) -> tuple[int, ...]:
    """The numbers a version begins with; a text without any counts as new."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return tuple(map(int, found.groups())) if found else OLDEST


def _moment(at: datetime, operator: str) -> Condition:
    return ("updated_at", operator, "Datetime", at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


def _chunks(items: Sequence[T]) -> Iterable[Sequence[T]]:
    """Items in groups that one import may carry."""
    return (items[first : first + CHUNK] for first in range(0, len(items), CHUNK))
