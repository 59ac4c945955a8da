"""Between dipnet's words and Label Studio's: label configs, instructions, tasks and annotations. Pure."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

from models.states import RequestState
from models.values import Answer, Example, Item, ProjectBrief, RequestDraft

IMAGE, CONTROL, KEY = "image", "label", "dipnet_key"
TITLE_LENGTH = 50  # Label Studio refuses longer titles
SHOWN_EXEMPLARS = 12  # of each kind, in the instructions


def fitting(title: str) -> str:
    """The title as Label Studio takes it: a longer one keeps its beginning and gets a hash of the whole."""
    title = title.strip()
    if len(title) <= TITLE_LENGTH:
        return title
    return f"{title[: TITLE_LENGTH - 9]}-{hashlib.sha256(title.encode()).hexdigest()[:8]}"


def label_config(class_names: Iterable[str], *, multiple: bool = False) -> str:
    """Label Studio's description of one image and a choice of one, or of several, of these classes."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=IMAGE, value=f"${IMAGE}")
    choice = {"choice": "multiple" if multiple else "single", "showInLine": "true"}
    choices = ElementTree.SubElement(view, "Choices", {"name": CONTROL, "toName": IMAGE, **choice})
    for name in class_names:
        ElementTree.SubElement(choices, "Choice", value=name)
    return ElementTree.tostring(view, encoding="unicode")


def instructions(brief: ProjectBrief, links: Mapping[str, str]) -> str:
    """The brief as HTML, with the exemplars as pictures; `links` leads from sample ids to where a browser finds them."""
    parts = ["<p>" + html.escape(brief.instructions).replace("\n", "<br>") + "</p>"]
    for positive, heading in ((True, "This is the issue:"), (False, "This is not:")):
        shown = [one for one in brief.examples if one.positive is positive and one.sample_id in links]
        if shown:
            parts.append(f"<p>{heading}</p><p>" + " ".join(_picture(one, links) for one in shown) + "</p>")
    return "".join(parts)


def _picture(example: Example, links: Mapping[str, str]) -> str:
    link = html.escape(links[example.sample_id], quote=True)
    # Label Studio strips styles and stacks pictures; this class of its own sets them side by side.
    return f'<img src="{link}" alt="exemplar" width="128" class="inline-block">'


def choice(class_names: Sequence[str]) -> dict[str, Any]:
    """One item of a result: these classes."""
    return {"from_name": CONTROL, "to_name": IMAGE, "type": "choices", "value": {"choices": list(class_names)}}


def task_of(draft: RequestDraft, link: str) -> Any:
    """What Label Studio imports: data by which we know it again, and the model's guess."""
    data = {IMAGE: link, KEY: draft.key, "sample_id": draft.sample_id, "priority": draft.priority}
    guess = {
        "model_version": draft.model_version,
        "score": draft.predicted_probability,
        "result": [choice([draft.predicted_class])],
    }
    return {"data": data, "predictions": [guess] if draft.predicted_class else []}


def key_of(task: Mapping[str, Any]) -> str:
    """Our key in a task's data; empty for a task that is not ours."""
    key = (task["data"] or {}).get(KEY)
    return key if isinstance(key, str) else ""


def item_of(task: Mapping[str, Any]) -> Item:
    """A task of ours with all its annotations."""
    answers = [_answer(annotation) for annotation in task.get("annotations") or []]
    return Item(key=key_of(task), external_id=str(task["id"]), changed_at=_moment(task["updated_at"]), answers=answers)


def _answer(annotation: Mapping[str, Any]) -> Answer:
    """A skip keeps a pre-filled result, so whether it is one is read first."""
    result: Sequence[Mapping[str, Any]] = annotation["result"] or []
    names, wrong = _chosen(result)
    state = RequestState.LABELLED if result else RequestState.EMPTY
    if annotation["was_cancelled"]:
        state, names, wrong = RequestState.SKIPPED, [], ""
    return Answer(
        external_id=str(annotation["id"]),
        state=state,
        class_names=names,
        wrong=wrong,
        annotator=_annotator(annotation),
        origin=str(result[0].get("origin") or "") if result else "",
        lead_seconds=annotation["lead_time"] or 0.0,
        answered_at=_moment(annotation["updated_at"]),
    )


def _chosen(result: Sequence[Mapping[str, Any]]) -> tuple[list[str], str]:
    """The classes that a result names, and what is wrong with it. Label Studio checks nothing that comes by its API."""
    names: list[str] = []
    for item in result:
        value = item.get("value")
        if item.get("from_name") != CONTROL or not isinstance(value, dict):
            return [], f"it answers '{item.get('from_name')}', which was not asked"
        names += [str(name) for name in value.get("choices") or []]
    return sorted(set(names)), "" if names or not result else "it names no class"


def _annotator(annotation: Mapping[str, Any]) -> str:
    """The e-mail address (Label Studio says 'First Last address, id'), else the id."""
    address: str = (annotation.get("created_username") or "").rpartition(", ")[0].rpartition(" ")[2]
    by = annotation.get("completed_by")
    return address or str((by.get("email") or by.get("id")) if isinstance(by, dict) else by)


def _moment(said: str | datetime) -> datetime:
    return (said if isinstance(said, datetime) else datetime.fromisoformat(said)).astimezone(UTC)
