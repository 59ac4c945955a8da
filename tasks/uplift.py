"""What a campaign's labels gave beyond as many labels drawn by chance: both arms, equal budget, several training seeds."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.campaign import Campaign, CampaignRun, Issue
from models.corpus import Corpus, EncoderSpec
from models.errors import BadInput
from models.learning import Scenario, Uplift
from models.outcomes import Uplifted
from models.retraining import HeadOptions, SplitPolicy, UpliftPlan
from models.states import Split
from storage import campaigns, corpora, labels, provenance, runs, tables
from storage.stores import Stores, open_stores
from tasks import features, grouping, heads, scenarios
from tasks.compute import classifier, deltas, perceptron
from tasks.datasets import Decided, Row, decide, of_scenarios, train_corpora
from tasks.grouping import Rule
from tasks.steps import step, track
from tasks.trainers import head

LEAST = 5  # labels of an arm, below which nothing is measured
VERSION = 1  # of what is done with the same inputs
OF_A_CLASS = ("f1", "recall", "precision")


class Learnt(NamedTuple):
    """Labels to learn from, and what was left out."""

    labels: dict[str, str]  # class by sample
    excluded: dict[str, int]  # by reason


class Case(NamedTuple):
    """All that goes into an uplift, looked up; no vector is read yet."""

    plan: UpliftPlan
    issue: Issue
    arms: list[Campaign]  # control, campaign
    labels: list[dict[str, str]]  # of each arm, as many: class by sample, in the order in which they were sent
    base: dict[str, str]  # class by sample
    scenario: Scenario
    listing: pa.Table  # of the scenario
    encoder: EncoderSpec
    excluded: dict[str, dict[str, int]]  # labels that are not learnt from, by reason: of base, control, campaign
    warnings: list[str]

    @property
    def class_name(self) -> str:
        """The class that the metric is about; empty: all of them."""
        return self.issue.class_name if self.plan.metric in OF_A_CLASS else ""

    @property
    def key(self) -> str:
        """Hash of all that went in."""
        parts: dict[str, Any] = {
            "version": VERSION,
            "arms": [campaign.name for campaign in self.arms],
            "labels": [sorted(arm.items()) for arm in self.labels],
            "base": sorted(self.base.items()),
            "scenario": [self.scenario.name, self.scenario.version, self.scenario.listing_sha256],
            "encoder": self.encoder.key,
            "metric": [self.plan.metric, self.class_name],
            "trainer": self.plan.trainer.model_dump(include={"name": True, self.plan.trainer.name: True}),
            "seeds": [self.plan.seed, self.plan.seeds],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Arms(NamedTuple):
    """Vectors and classes of the base, and of both arms, control first."""

    base: tuple[NDArray[np.float32], NDArray[np.int64]]  # (n, dim), (n,)
    arms: list[tuple[NDArray[np.float32], NDArray[np.int64]]]
    asked: NDArray[np.float32]  # (m, dim): the scenario's


@step()
def measure(plan: UpliftPlan) -> Uplifted:
    """Fit the base data with either arm's labels for each seed, predict the scenario, and store what the campaign gains.

    Neither base nor arms hold what is in evaluation data or related to it, by the rule of dataset versions.
    The arm with more labels is cut to the first that it sent, so that both have as many. A seed draws the training rows
    anew within each class, the same base rows for both arms. Twice changes nothing. Raises BadInput for arms that cannot
    be held against each other.
    """
    with open_stores() as stores:
        case = _look_up(stores, plan)
        found = provenance.find_uplift(stores.db, key=case.key)
        reused = found is not None
        if found is None:
            stores.db.commit()  # nobody waits for the database while heads are fitted
            found = _measured(stores, case)
            stores.db.add(found)
            stores.db.flush()
        return _told(found, case, reused=reused)


def _look_up(stores: Stores, plan: UpliftPlan) -> Case:
    if plan.trainer.name != "head":
        raise BadInput(
            f"uplift is measured with trainer head, not {plan.trainer.name}: each of its fits takes seconds, and many are made"
        )
    arms = [campaigns.get_campaign(stores.db, name=name) for name in (plan.control, plan.campaign)]
    warnings = _comparable(stores, *arms)
    issue = stores.db.get_one(Issue, arms[1].issue_id)
    scenario = _scenario(stores, plan, issue)
    listing = tables.read(stores.objects, scenario.listing_key, scenario.listing_sha256)
    encoder = corpora.get_encoder(stores.db, name=plan.encoder or stores.settings.encoder)
    train = train_corpora(stores, plan.corpora)
    answered = [_labels_of(stores, arm) for arm in arms]
    base, *given = _without_evaluation(
        stores, encoder, train, listing, [provenance.classes_of(stores.db, corpora=train), *answered]
    )
    budget = _budget(arms, given)
    return Case(
        plan=plan,
        issue=issue,
        arms=arms,
        labels=[dict(list(arm.labels.items())[:budget]) for arm in given],
        base=base.labels,
        scenario=scenario,
        listing=listing,
        encoder=encoder,
        excluded={"base": base.excluded, "control": given[0].excluded, "campaign": given[1].excluded},
        warnings=warnings,
    )


def _budget(arms: Sequence[Campaign], given: Sequence[Learnt]) -> int:
    """How many labels of each arm are learnt from. Raises BadInput for too few."""
    few, arm = min(zip(given, arms, strict=True), key=lambda pair: len(pair[0].labels))
    if len(few.labels) < LEAST:
        without = "; ".join(f"{count} {reason}" for reason, count in few.excluded.items())
        raise BadInput(
            f"campaign '{arm.name}' has {len(few.labels)} labels to learn from, and {LEAST} are the least"
            f"{f' (left out: {without})' if without else ''}; have more answered, then: dipnet labels sync"
        )
    return len(few.labels)


def _without_evaluation(
    stores: Stores, encoder: EncoderSpec, train: Sequence[Corpus], listing: pa.Table, given: Sequence[dict[str, str]]
) -> list[Learnt]:
    """The labels without what is in evaluation data or related to it, by the rule of dataset versions.

    All are looked at together: an image that relates one arm's to evaluation data counts for the other arm too.
    """
    held = [(split, corpora.list_corpora(stores.db, split=split)) for split in (Split.DEVELOPMENT, Split.HOLDOUT)]
    evaluated: dict[str, Split] = {}
    for split, some in held:
        evaluated |= dict.fromkeys(provenance.classes_of(stores.db, corpora=some), split)
    evaluated |= dict.fromkeys([*of_scenarios(stores), *listing.column("sample_id").to_pylist()], Split.HOLDOUT)
    learnt = {sample_id: name for labels_ in given for sample_id, name in labels_.items()}
    samples = corpora.known_samples(stores.db, ids=sorted({*learnt, *evaluated}))
    rule = Rule(SplitPolicy(), encoder, [*train, *(corpus for _, some in held for corpus in some)])
    reasons = decide(
        Decided({sample_id: Row(samples[sample_id], name) for sample_id, name in learnt.items()}, {}),
        {sample_id: Row(samples[sample_id], "", split) for sample_id, split in evaluated.items()},
        {},
        grouping.names_of(stores, [samples[sample_id] for sample_id in sorted(samples)], rule),
    ).excluded
    return [
        Learnt(
            {sample_id: name for sample_id, name in one.items() if sample_id not in reasons},
            dict(sorted(Counter(reasons[sample_id] for sample_id in one if sample_id in reasons).items())),
        )
        for one in given
    ]


def _comparable(stores: Stores, control: Campaign, campaign: Campaign) -> list[str]:
    """What makes the comparison less than fair. Raises BadInput for arms that chose from different images."""
    if control.id == campaign.id:
        raise BadInput(f"campaign '{campaign.name}' cannot be its own control; name one with: --control CAMPAIGN")
    pools = [_pools(campaigns.runs_of(stores.db, campaign_id=one.id or 0)) for one in (control, campaign)]
    for one, pool in zip((control, campaign), pools, strict=True):
        if not pool:
            raise BadInput(f"campaign '{one.name}' was never run; see: dipnet campaign run --help")
    if pools[0] != pools[1]:
        told = ["; ".join(sorted(", ".join(c) + (f" where {w}" if w else "") for c, w in pool)) for pool in pools]
        raise BadInput(
            f"'{control.name}' chose from {told[0]} and '{campaign.name}' from {told[1]}; a control chooses from the same "
            "images: run one with --strategy random over them"
        )
    strategies = {run.policy["strategy"] for run in campaigns.runs_of(stores.db, campaign_id=control.id or 0)}
    warnings = []
    if strategies != {"random"}:
        warnings.append(
            f"'{control.name}' did not choose by chance ({', '.join(sorted(strategies))}): this is a difference between "
            "two strategies, and no uplift over chance"
        )
    taken = _taken_before(stores, control, campaign)
    if taken:
        warnings.append(
            f"'{control.name}' could not draw {taken} images of the pool that were labelled or sent before; draw a control "
            "before the campaign's labels come in"
        )
    if control.issue_id != campaign.issue_id:
        warnings.append(f"'{control.name}' is about another issue than '{campaign.name}'")
    return warnings


def _taken_before(stores: Stores, control: Campaign, campaign: Campaign) -> int:
    """Images that the control's first run left out as known, if the campaign ran before it."""
    firsts = [campaigns.runs_of(stores.db, campaign_id=one.id or 0)[0] for one in (control, campaign)]
    if (firsts[0].id or 0) < (firsts[1].id or 0):
        return 0
    return sum(firsts[0].excluded.get(reason, 0) for reason in ("labelled already", "sent by another campaign"))


def _pools(rounds: Sequence[CampaignRun]) -> set[tuple[tuple[str, ...], str]]:
    return {(tuple(sorted(run.corpora)), run.condition) for run in rounds}


def _scenario(stores: Stores, plan: UpliftPlan, issue: Issue) -> Scenario:
    """The scenario that is named, or the issue's own, frozen when it is new."""
    if plan.scenario:
        return runs.get_scenario(stores.db, name=plan.scenario)
    found = runs.find_scenario(stores.db, name=f"issue-{issue.name}")
    if found is not None:
        return found
    stores.db.commit()  # another transaction freezes it
    return runs.get_scenario(stores.db, name=scenarios.issue_scenario(issue.name))


def _labels_of(stores: Stores, campaign: Campaign) -> dict[str, str]:
    """An arm's usable answers: class by sample, in the order in which they were sent."""
    batches = labels.batches_of(stores.db, campaigns=[campaign.name])
    resolved = labels.resolved_of_batches(stores.db, batches=batches) if batches else []
    return {sample.id: request.class_name for request, sample in resolved if request.class_name}


def _measured(stores: Stores, case: Case) -> Uplift:
    names = sorted({*case.base.values(), *(name for arm in case.labels for name in arm.values())})
    known = sorted({*names, *case.listing.column("class_name").to_pylist()})
    if len(set(case.base.values())) < 2:
        raise BadInput("the train corpora hold labels of fewer than two classes; embed a labelled corpus first")
    read = _read(stores, case, known)
    seeds = range(case.plan.seed, case.plan.seed + case.plan.seeds)
    said = [
        [_answers(read, arm, case.plan.trainer.head, seed=seed, classes=len(known)) for arm in range(2)]
        for seed in track(seeds, "fitting both arms")
    ]
    found = deltas.uplift(
        classifier.as_targets(case.listing.column("class_name").to_pylist(), known),
        np.stack([both[0] for both in said]),
        np.stack([both[1] for both in said]),
        metric=case.plan.metric,
        target=known.index(case.class_name) if case.class_name in known else -1,
        classes=len(known),
        groups=grouping.within(case.listing, case.listing.column("sample_id").to_pylist()),
    )
    return Uplift(
        key=case.key,
        campaign_id=case.arms[1].id or 0,
        control_id=case.arms[0].id or 0,
        scenario_id=case.scenario.id or 0,
        class_name=case.class_name,
        metric=case.plan.metric,
        budget=len(case.labels[0]),
        seeds=list(seeds),
        by_seed=[{"control": float(c), "campaign": float(t)} for c, t in found.by_seed],
        mean=found.mean,
        low=found.low,
        high=found.high,
    )


def _read(stores: Stores, case: Case, known: list[str]) -> Arms:
    """The vectors of the base without what an arm has relabelled, of each arm, and of the scenario."""

    def of(given: dict[str, str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        ids, vectors = features.of_known(stores, sorted(given), case.encoder)
        if len(ids) < len(given):
            raise BadInput(
                f"{len(given) - len(ids)} labelled samples have no vectors of encoder '{case.encoder.name}'; embed their "
                f"corpora with: dipnet embed CORPUS --encoder {case.encoder.name}"
            )
        return vectors, classifier.as_targets([given[sample_id] for sample_id in ids], known)

    asked = features.of_listing(stores, case.listing, case.encoder)
    again = {sample_id for arm in case.labels for sample_id in arm}
    base = of({sample_id: name for sample_id, name in case.base.items() if sample_id not in again})
    return Arms(base, [of(arm) for arm in case.labels], asked)


def _answers(read: Arms, arm: int, options: HeadOptions, *, seed: int, classes: int) -> NDArray[np.int64]:
    """What a head of one arm says of the scenario (m,), fitted on rows that the seed draws."""
    parts = [read.base, read.arms[arm]]
    drawn = [classifier.resample(targets, seed=2 * seed + place) for place, (_, targets) in enumerate(parts)]
    rows = np.concatenate([vectors[places] for (vectors, _), places in zip(parts, drawn, strict=True)])
    targets = np.concatenate([targets[places] for (_, targets), places in zip(parts, drawn, strict=True)])
    none = perceptron.Rows(rows[:0], targets[:0])
    fitted, _ = head.fit_rows(perceptron.Rows(rows, targets), none, options, classes, seed)
    return np.asarray(heads.probabilities(fitted, read.asked).argmax(axis=1), dtype=np.int64)


def _told(found: Uplift, case: Case, *, reused: bool) -> Uplifted:
    return Uplifted(
        uplift_id=found.id or 0,
        campaign=case.plan.campaign,
        control=case.plan.control,
        scenario=case.scenario.reference,
        samples=case.scenario.samples,
        class_name=found.class_name,
        metric=found.metric,
        budget=found.budget,
        seeds=found.seeds,
        by_seed=found.by_seed,
        mean=found.mean,
        low=found.low,
        high=found.high,
        excluded=case.excluded,
        warnings=case.warnings,
        reused=reused,
    )
