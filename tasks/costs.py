"""What labelling cost: lead times of answers, in minutes and money."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from models.labeling import Label, LabelBatch
from storage import labels
from storage.stores import Stores


class Spent(NamedTuple):
    """Time that annotators spent: of every answer, whoever gave it and whether or not it counts."""

    answers: int
    timed: int  # answers that have a lead time
    seconds: float  # the sum of these lead times


NOTHING = Spent(0, 0, 0.0)


def of_batch(stores: Stores, batch: LabelBatch) -> Spent:
    """What a batch cost so far, golden items, skips, rejected and withdrawn answers included: they were paid for."""
    requests = labels.requests_of(stores.db, batch_id=batch.id or 0)
    return of_answers(labels.answers_to(stores.db, request_ids=[request.id or 0 for request in requests]))


def of_answers(answers: Iterable[Label]) -> Spent:
    """The last version of an answer holds the time of all its versions: Label Studio adds up."""
    times = [label.lead_seconds for label in answers]
    timed = [seconds for seconds in times if seconds > 0]
    return Spent(len(times), len(timed), sum(timed))
