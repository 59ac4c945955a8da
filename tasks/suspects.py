"""Relabel before recollect: exemplars whose label is probably wrong, before a campaign searches for more of the same."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.campaign import Issue
from models.corpus import EncoderSpec, Sample
from models.errors import BadInput, DipnetError
from models.plans import CampaignPlan
from models.states import Split
from storage import campaigns, corpora, provenance
from storage.stores import Stores, open_stores
from tasks import features
from tasks.compute import label_errors
from tasks.steps import step

MOST = 10_000  # labelled samples that are looked at: what takes a few seconds
SEED = 0
Row = dict[str, Any]


class Labelled(NamedTuple):
    """Vectors with a class, exemplars among them."""

    sample_ids: list[str]  # (n,)
    class_names: list[str]  # (n,)
    vectors: NDArray[np.float32]  # (n, dim)


@step()
def check_issue(issue_name: str, encoder_name: str = "") -> Row:
    """The exemplars of an issue whose label is probably wrong, worst first, and how many could be judged."""
    with open_stores() as stores:
        issue = campaigns.get_issue(stores.db, name=issue_name)
        campaigns.require_positive(issue, campaigns.exemplars_of(stores.db, issue_id=issue.id or 0))
        encoder = corpora.get_encoder(stores.db, name=encoder_name or stores.settings.encoder)
        found = _check(stores, issue, encoder)
    return {"issue": issue_name, **found}


def on_opening(stores: Stores, plan: CampaignPlan, issue: Issue, encoder: EncoderSpec) -> Row:
    """What a campaign's first run finds of its exemplars' labels, for its `found`. Raises BadInput where it is to refuse.

    It never stops a campaign because there is too little to judge by. The random strategy looks for nothing.
    """
    if plan.labelling.suspects == "ignore" or plan.policy.strategy == "random":
        return {}
    try:
        found = _check(stores, issue, encoder)
    except DipnetError as problem:
        return {"suspects": {"says": f"exemplars' labels were not checked: {problem}", "suspects": []}}
    if found["suspects"] and plan.labelling.suspects == "refuse":
        raise BadInput(
            f"campaign '{plan.campaign}' is not opened: {found['says']}; correct them, or run it with --set suspects=warn"
        )
    return {"suspects": found}


def _check(stores: Stores, issue: Issue, encoder: EncoderSpec) -> Row:
    shown = [s for e, s in campaigns.exemplars_of(stores.db, issue_id=issue.id or 0) if e.positive]
    labelled = _labelled(stores, encoder, issue, shown)
    held = Counter(labelled.class_names)
    names = sorted(name for name, count in held.items() if count >= label_errors.LEAST)
    places = {sample_id: place for place, sample_id in enumerate(labelled.sample_ids)}
    judged = [sample for sample in shown if sample.id in places] if issue.class_name in names else []
    counts = {"exemplars": len(shown), "judged": len(judged), "judged_by": len(labelled.sample_ids)}
    if len(names) < 2 or not judged:
        return {"says": _too_little(issue, held, judged_by=len(labelled.sample_ids)), **counts, "suspects": []}

    kept = np.flatnonzero(np.isin(labelled.class_names, names))
    targets = np.searchsorted(names, np.asarray(labelled.class_names)[kept]).astype(np.int64)
    found = label_errors.judge(labelled.vectors[kept], targets, seed=SEED)

    row_of = {labelled.sample_ids[place]: row for row, place in enumerate(kept)}
    rows = [_suspect(sample, row_of[sample.id], found, issue, names) for sample in judged]
    suspects = sorted((row for row in rows if row is not None), key=lambda row: float(row["quality"]))
    return {"says": _said(issue, suspects, len(judged), len(shown)), **counts, "suspects": suspects}


def _labelled(stores: Stores, encoder: EncoderSpec, issue: Issue, shown: list[Sample]) -> Labelled:
    """Train and development data with vectors, and the exemplars: what they are given as is the issue's class."""
    used = [c for split in (Split.TRAIN, Split.DEVELOPMENT) for c in corpora.list_corpora(stores.db, split=split)]
    given = provenance.classes_of(stores.db, corpora=used, most=MOST) if used else {}
    given |= {sample.id: issue.class_name for sample in shown}
    sample_ids, vectors = features.of_known(stores, list(given), encoder)
    return Labelled(sample_ids, [given[sample_id] for sample_id in sample_ids], vectors)


def _suspect(sample: Sample, row: int, found: label_errors.Judged, issue: Issue, names: list[str]) -> Row | None:
    if not found.suspected[row]:
        return None
    return {
        "sample": sample.id,
        "given": issue.class_name,
        "likely": names[int(found.likely[row])],
        "quality": round(float(found.quality[row]), 4),
        "image": sample.uri,
    }


def _too_little(issue: Issue, held: Counter[str], *, judged_by: int) -> str:
    if judged_by and held[issue.class_name] < label_errors.LEAST:
        what = f"{held[issue.class_name]} of class '{issue.class_name}', and {label_errors.LEAST} are needed"
    else:
        what = f"{judged_by} in all, and {label_errors.LEAST} of each of two classes are needed"
    return f"exemplars' labels were not checked: too few labelled samples have vectors ({what})"


def _said(issue: Issue, suspects: list[Row], judged: int, shown: int) -> str:
    if not suspects:
        unseen = f"; {shown - judged} without vectors were not judged" if shown > judged else ""
        return f"no label of {judged} exemplars looks wrong{unseen}"
    which = ", ".join(f"{row['sample'][:12]} looks like {row['likely']}" for row in suspects[:3])
    more = f" and {len(suspects) - 3} more" if len(suspects) > 3 else ""
    return (
        f"{len(suspects)} of {judged} exemplars may be mislabelled: {which}{more}; look at them with: "
        f"dipnet issue check {issue.name}"
    )
