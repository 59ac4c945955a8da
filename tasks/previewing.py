"""A dry run: what a campaign would do, with a picture, before a label is asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from models.campaign import Candidate
from models.corpus import Sample
from models.errors import DipnetError
from models.plans import CampaignPlan
from models.states import Arm, CandidateState, RunState
from models.values import Previewed
from storage import corpora
from storage.stores import Stores, open_stores
from tasks import choosing, elements, mining, planning, scanning
from tasks.compute import images
from tasks.compute.sheet import Picture, Strip, contact_sheet
from tasks.outputs import require_place
from tasks.steps import step

ACROSS = 10  # pictures in a row


@step()
def preview(plan: CampaignPlan, sheet: Path | None) -> Previewed:
    """Choose the next round and tell it. With `sheet`, write the contact sheet there as PNG.

    The very same code chooses, so that what is shown is what a run would send; but nothing is put in the database, not
    even to be taken back: whoever writes there does not have to wait for a scan.
    """
    if sheet is not None:
        require_place(sheet)
    with open_stores() as stores:
        drafted = planning.draft(stores, plan)
        if drafted.ends or drafted.run.state is not RunState.PLANNED:
            status = f"would stop: {drafted.ends}" if drafted.ends else planning.status(stores, plan)
            return Previewed(campaign=plan.campaign, status=status, mined=None)
        try:
            outcome = mining.choose(stores, drafted.campaign, drafted.run)
        finally:
            scanning.forget(stores, drafted.run)
        told = mining.told(outcome)
        picture = _sheet(stores, outcome)
    sink = io.BytesIO()
    picture.save(sink, format="PNG")
    if sheet is not None:
        sheet.write_bytes(sink.getvalue())
    return Previewed(
        campaign=plan.campaign, status="dry run: nothing is kept or sent", mined=told, sheet=str(sheet) if sheet else ""
    )


def sheet_of_run(stores: Stores, candidates: Sequence[Candidate], sheet: Path) -> None:
    """Write a contact sheet of a run's candidates, each with its rank, its state and its score, as PNG."""
    known = corpora.known_samples(stores.db, ids=[one.sample_id for one in candidates])
    marks = {CandidateState.ACCEPTED: "+", CandidateState.DISCARDED: "x"}
    pictures = [
        Picture(
            _open(stores, known[one.sample_id]),
            f"{one.rank + 1}{marks.get(one.state, '')} {one.score:.2f} {one.arm.value[:7]}",
        )
        for one in candidates
    ]
    rows = [pictures[first : first + ACROSS] for first in range(0, len(pictures), ACROSS)]
    strips = [Strip(f"{number * ACROSS + 1} to {number * ACROSS + len(row)}", row) for number, row in enumerate(rows)]
    sink = io.BytesIO()
    contact_sheet(strips).save(sink, format="PNG")
    sheet.write_bytes(sink.getvalue())


def _sheet(stores: Stores, outcome: mining.Outcome) -> Image.Image:
    """Exemplars beside the best, the median and the borderline candidates."""
    selected, shown = outcome.selected, outcome.aim.shown
    known = corpora.known_samples(stores.db, ids=shown.sample_ids[:ACROSS])
    exemplars = [Picture(_open(stores, sample), "") for sample in known.values()]
    exploited = [place for place, arm in enumerate(selected.arms) if arm is Arm.EXPLOIT]
    middle = max(0, len(exploited) // 2 - ACROSS // 2)
    strips = [
        Strip("exemplars", exemplars),
        Strip("best", _pictures(stores, selected, exploited[:ACROSS])),
        Strip("median of the best", _pictures(stores, selected, exploited[middle : middle + ACROSS])),
        Strip("last of the best", _pictures(stores, selected, exploited[-ACROSS:])),
    ]
    for arm in (Arm.BOUNDARY, Arm.RANDOM):
        places = [place for place, one in enumerate(selected.arms) if one is arm]
        strips.append(Strip(f"{arm.value} arm", _pictures(stores, selected, places[:ACROSS])))
    return contact_sheet([strip for strip in strips if strip.pictures])


def _pictures(stores: Stores, selected: choosing.Selected, places: Sequence[int]) -> list[Picture]:
    taken = selected.taken
    return [
        Picture(
            _open(stores, Sample(id=taken.sample_ids[place], uri=taken.uris[place])), f"{selected.scores[place]:.3f}"
        )
        for place in places
    ]


def _open(stores: Stores, sample: Sample) -> Image.Image | None:
    """The image, or None when it is gone or broken."""
    try:
        return elements.image_of(stores, sample.uri)
    except (images.Unreadable, DipnetError):
        return None
