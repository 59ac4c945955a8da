"""From a pool and its scores to a batch: what is barred, three arms, and a counted reason for all that was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.campaign import Campaign, CampaignRun
from models.corpus import EncoderSpec
from models.errors import BadInput
from models.plans import SelectionPolicy
from models.states import Arm, Split
from storage import campaigns, corpora, labels, vectors
from storage.stores import Stores
from tasks import features
from tasks.compute import contrast, portable, scoring, selection
from tasks.compute.contrast import Contrast
from tasks.compute.portable import Scorer
from tasks.pool import Pool

BOUNDARY_DEPTH = 4  # the boundary arm is drawn from so many times its size, just below the best

TOO_LOW = "below the least score"

Ranking = Callable[[int], NDArray[np.int64]]  # how many → the best rows of the pool, best first
ClassesOf = Callable[[NDArray[np.float32]], list[str]]  # predicted classes of vectors (n, dim)


class Barred(NamedTuple):
    """What must not be chosen: known samples by reason, and vectors that nothing may come close to."""

    reasons: dict[str, str]  # sample id → reason
    images: frozenset[str]  # whole images with evaluation data: no box of them may be chosen either
    evaluation: NDArray[np.float32]  # (m, dim)
    exemplars: NDArray[np.float32]  # (e, dim) positive and negative
    spoken_for: NDArray[np.float32]  # (k, dim) labelled, or sent by some campaign


class Case(NamedTuple):
    """All that a choice is made from."""

    policy: SelectionPolicy
    seed: int  # of this round
    pool: Pool
    barred: Barred
    scorer: Scorer | None  # None: by chance alone
    ranking: Ranking | None  # None: by chance alone
    classes_of: ClassesOf | None
    contrast: Contrast | None = None  # a second opinion on the best


class Eligible(NamedTuple):
    """How many rows the random arm could have drawn, told from the share that was free of those it looked at."""

    rows: float
    error: float  # standard error, as a share of `rows`; 0 when it looked at all


class Selected(NamedTuple):
    """Chosen elements, best first, with why each is there, and what was left out by reason."""

    taken: vectors.Taken
    raw: NDArray[np.float64]  # (k,)
    scores: NDArray[np.float64]  # (k,) 0..1
    prototypes: NDArray[np.int64]  # (k,)
    arms: list[Arm]  # (k,)
    stands_for: NDArray[np.int64]  # (k,)
    excluded: dict[str, int]
    eligible: Eligible | None = None  # None without a random arm


class Ranked(NamedTuple):
    """Rows of the pool with what is known of them; `reasons` is empty for those that may be chosen."""

    rows: NDArray[np.int64]  # (n,)
    taken: vectors.Taken
    scored: portable.Scored
    merits: NDArray[np.float64]  # (n,) what the rows are ordered by: raw scores, or what neighbours agree on
    reasons: list[str]  # (n,)

    def at(self, places: NDArray[np.int64]) -> Ranked:
        """Some of them, in the order given."""
        reasons = [self.reasons[place] for place in places.tolist()]
        return Ranked(self.rows[places], self.taken.at(places), self.scored.at(places), self.merits[places], reasons)


def bar(stores: Stores, campaign: Campaign, run: CampaignRun, exemplars: scoring.Exemplars, *, across: bool) -> Barred:
    """Evaluation data, labelled data, the issue's exemplars, and what this campaign or, with `across`, any other decided.

    Raises BadInput for evaluation data that the encoder has not seen: near-duplicates of it could not be told.
    """
    encoder = stores.db.get_one(EncoderSpec, run.encoder_id)
    shown = {sample.id for _, sample in campaigns.exemplars_of(stores.db, issue_id=campaign.issue_id)}
    labelled = labels.labelled_samples(stores.db)
    own = campaigns.decided_samples(stores.db, campaign_id=run.campaign_id, but_run=run.id or 0)
    others = campaigns.claimed_elsewhere(stores.db, campaign_id=run.campaign_id) if across else set()
    evaluation, images, apart = _evaluation(stores, encoder)
    reasons = dict.fromkeys(others, "sent by another campaign")
    reasons |= dict.fromkeys(own, "decided in this campaign")
    reasons |= dict.fromkeys(labelled, "labelled already")
    reasons |= dict.fromkeys(shown, "an exemplar of the issue")
    reasons |= dict.fromkeys(evaluation, "evaluation data")
    _, spoken_for = features.of_known(stores, sorted((labelled | own | others) - evaluation), encoder)
    return Barred(reasons, images, apart, np.vstack([exemplars.positive, exemplars.negative]), spoken_for)


def choose(case: Case, *, budget: int) -> Selected:
    """A batch of up to `budget`: first the random arm, over all that may be chosen; then the best; then the boundary.

    The random arm is drawn first and from everything, so that its hits estimate prevalence without bias.
    """
    by_chance = budget if case.scorer is None else int(budget * case.policy.random_share)
    at_border = 0 if case.scorer is None else int(budget * case.policy.boundary_share)
    drawn, counted, eligible = _random_arm(case, by_chance)
    parts, arms = [drawn], [Arm.RANDOM] * len(drawn.rows)
    stands_for: list[NDArray[np.int64]] = [np.zeros(len(drawn.rows), np.int64)]
    if case.ranking is not None:
        wanted = budget - len(drawn.rows) - at_border
        ranked, best = _best(case, case.ranking, drawn, wanted)
        border = _border(case, ranked, best, at_border)
        counted += _left_out(ranked, best, wanted)
        parts += [ranked.at(best.places), ranked.at(border)]
        arms += [Arm.EXPLOIT] * len(best.places) + [Arm.BOUNDARY] * len(border)
        stands_for += [best.stands_for, np.zeros(len(border), np.int64)]
    return _in_order(parts, arms, np.concatenate(stands_for), dict(counted))._replace(eligible=eligible)


def choose_among(case: Case, rows: NDArray[np.int64], *, budget: int) -> Selected:
    """The best of these rows alone, up to `budget`."""
    ranked = _sorted(case, _look_at(case, rows))
    nobody = ranked.at(np.empty(0, np.int64))
    ranked = _without(ranked, nobody, case.policy)
    best = _pick(case, ranked, budget)
    left_out = dict(_left_out(ranked, best, budget))
    return _in_order([ranked.at(best.places)], [Arm.EXPLOIT] * len(best.places), best.stands_for, left_out)


def _random_arm(case: Case, count: int) -> tuple[Ranked, Counter[str], Eligible | None]:
    """`count` rows by chance among those that may be chosen; what was drawn and is barred is counted."""
    total, depth = int(case.pool.sizes.sum()), 2 * count + 100
    while True:
        rows = case.pool.draw(depth if count else 0, seed=case.seed)
        found = _look_at(case, rows)
        free = np.flatnonzero([not reason for reason in found.reasons])[:count]
        if len(free) == count or depth >= total:
            break
        depth *= 4
    eligible = _eligible(found, total) if count else None
    if case.scorer is not None:
        return found.at(free), Counter(), eligible
    reach = int(free[-1]) + 1 if len(free) == count else len(rows)
    return found.at(free), Counter(reason for reason in found.reasons[:reach] if reason), eligible


def _eligible(drawn: Ranked, total: int) -> Eligible:
    """How many of the pool's rows are free, from rows drawn by chance: a count over all would read every shard's ids.

    The share of free rows among those drawn times the pool's rows is without bias; its error is a hypergeometric count's.
    """
    looked_at, free = len(drawn.reasons), drawn.reasons.count("")
    if not free:
        return Eligible(0.0, 0.0)
    share, unseen = free / looked_at, (total - looked_at) / max(total - 1, 1)
    return Eligible(share * total, float(np.sqrt((1 - share) / free * unseen)))


def _best(case: Case, ranking: Ranking, drawn: Ranked, wanted: int) -> tuple[Ranked, selection.Chosen]:
    """Look deeper down the ranking until the best arm is full, or the pool or the least score ends it."""
    depth = max(1_000, 4 * case.policy.budget)
    while True:
        ranked = _sorted(case, _look_at(case, ranking(depth)))
        exhausted = len(ranked.rows) < depth
        ranked = _without(ranked, drawn, case.policy)
        found = _pick(case, ranked, wanted)
        if len(found.places) == wanted or exhausted or TOO_LOW in ranked.reasons:
            return ranked, found
        depth *= 4


def _sorted(case: Case, ranked: Ranked) -> Ranked:
    """By the score that is kept, which rounds otherwise than the scan's, and what else is known; ties in corpus order.

    Rows that may be chosen are compared with one another alone: what was labelled lies where it is likely, and would
    pull its neighbours along. The others are placed among them by their scores.
    """
    by_score = ranked.at(np.lexsort((ranked.rows, -ranked.scored.raw)))
    free = np.asarray([not reason for reason in by_score.reasons], dtype=np.bool_)
    raw, merits = by_score.scored.raw, by_score.scored.raw.copy()
    if free.any():
        merits[free] = contrast.merits(by_score.taken.vectors[free], raw[free], case.contrast)
        merits[~free] = np.interp(raw[~free], raw[free][::-1], np.sort(merits[free]))
    return by_score._replace(merits=merits).at(np.lexsort((by_score.rows, -merits)))


def _pick(case: Case, ranked: Ranked, wanted: int) -> selection.Chosen:
    """Places of the ranking that are free, distinct and varied."""
    free = np.flatnonzero([not reason for reason in ranked.reasons])
    inside = ranked.at(free)
    found = selection.choose(
        inside.taken.vectors,
        inside.merits,
        budget=wanted,
        near_duplicate_cosine=case.policy.near_duplicate_cosine,
        diversity=case.policy.diversity,
        shares=_shares(case, inside, wanted),
    )
    return found._replace(places=free[found.places])


def _look_at(case: Case, rows: NDArray[np.int64]) -> Ranked:
    """Rows of the pool with their scores and, for those that must not be chosen, the reason."""
    policy, barred, taken = case.policy, case.barred, case.pool.take(rows)
    if case.scorer is None:
        scored = portable.Scored(np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows), np.int64))
    else:
        scored = portable.score(case.scorer, taken.vectors)
    reasons = [barred.reasons.get(sample_id, "") for sample_id in taken.sample_ids]
    leaks = selection.too_close(taken.vectors, barred.evaluation, cosine=policy.leak_cosine)
    shown = selection.too_close(taken.vectors, barred.exemplars, cosine=policy.near_duplicate_cosine)
    known = selection.too_close(taken.vectors, barred.spoken_for, cosine=policy.near_duplicate_cosine)
    seen: set[str] = set()
    for place, sample_id in enumerate(taken.sample_ids):
        if reasons[place]:
            pass
        elif taken.image_ids[place] in barred.images:
            reasons[place] = "of an image in evaluation data"
        elif leaks[place]:
            reasons[place] = "near-duplicate of evaluation data"
        elif sample_id in seen:
            reasons[place] = "the same bytes again"
        elif shown[place]:
            reasons[place] = "near-duplicate of an exemplar of the issue"
        elif known[place]:
            reasons[place] = "near-duplicate of what is labelled or sent"
        seen.add(sample_id)
    return Ranked(rows, taken, scored, scored.raw, reasons)


def _without(ranked: Ranked, drawn: Ranked, policy: SelectionPolicy) -> Ranked:
    """The ranking, less what the random arm took, what is like it, and what scores too little."""
    chosen = set(drawn.taken.sample_ids)
    alike = selection.too_close(ranked.taken.vectors, drawn.taken.vectors, cosine=policy.near_duplicate_cosine)
    reasons = list(ranked.reasons)
    for place, sample_id in enumerate(ranked.taken.sample_ids):
        if reasons[place]:
            continue
        if sample_id in chosen:
            reasons[place] = "drawn by chance"
        elif alike[place]:
            reasons[place] = "near-duplicate of a candidate"
        elif ranked.scored.scores[place] < policy.min_score:
            reasons[place] = TOO_LOW
    return ranked._replace(reasons=reasons)


def _shares(case: Case, ranked: Ranked, wanted: int) -> selection.Shares:
    """Slots by predicted class where asked, else by prototype."""
    if case.policy.balance_classes and case.classes_of is not None:
        names = case.classes_of(ranked.taken.vectors)
        numbers = {name: number for number, name in enumerate(sorted(set(names)))}
        return selection.even_shares(np.asarray([numbers[name] for name in names], np.int64), slots=wanted)
    return selection.even_shares(ranked.scored.probes, slots=int(wanted * case.policy.prototype_share))


def _border(case: Case, ranked: Ranked, best: selection.Chosen, count: int) -> NDArray[np.int64]:
    """Places by chance among the next best after the best, no two of them or of the best alike."""
    alike = selection.too_close(
        ranked.taken.vectors, ranked.taken.vectors[best.places], cosine=case.policy.near_duplicate_cosine
    )
    alike[best.places] = True  # rounding may leave a row's cosine to itself below 1
    free = np.flatnonzero(np.asarray([not reason for reason in ranked.reasons], dtype=np.bool_) & ~alike)
    inside = ranked.at(free)
    found = selection.choose(
        inside.taken.vectors,
        inside.merits,
        budget=BOUNDARY_DEPTH * count,
        near_duplicate_cosine=case.policy.near_duplicate_cosine,
    )
    drawn = np.random.default_rng([case.seed, 1]).permutation(free[found.places])[:count]
    return np.sort(drawn)


def _left_out(ranked: Ranked, best: selection.Chosen, wanted: int) -> Counter[str]:
    """Only what ranks above the last of the best is counted: the rest was not reached."""
    reach = int(best.places[-1]) + 1 if len(best.places) == wanted and wanted else len(ranked.rows)
    counted = Counter(reason for reason in ranked.reasons[:reach] if reason and reason != "drawn by chance")
    if best.near_duplicates:
        counted["near-duplicate of a candidate"] += best.near_duplicates
    return counted


def _in_order(
    parts: Sequence[Ranked], arms: list[Arm], stands_for: NDArray[np.int64], excluded: dict[str, int]
) -> Selected:
    """The arms as one batch, best score first."""
    taken = vectors.Taken.joined([part.taken for part in parts])
    scores = np.concatenate([part.scored.scores for part in parts])
    order = np.lexsort((np.arange(len(scores)), -scores))
    return Selected(
        taken.at(order),
        np.concatenate([part.scored.raw for part in parts])[order],
        scores[order],
        np.concatenate([part.scored.probes for part in parts])[order],
        [arms[place] for place in order.tolist()],
        stands_for[order],
        excluded,
    )


def _evaluation(stores: Stores, encoder: EncoderSpec) -> tuple[set[str], frozenset[str], NDArray[np.float32]]:
    """Labelled samples of development and holdout corpora, the images they are of, and their vectors (m, dim).

    The vectors are zeros for what is unreadable now.
    """
    held = [c for split in (Split.DEVELOPMENT, Split.HOLDOUT) for c in corpora.list_corpora(stores.db, split=split)]
    for corpus in held:
        if corpora.shards_without(stores.db, corpus=corpus, encoder=encoder):
            raise BadInput(
                f"corpus '{corpus.name}' holds evaluation data without vectors of encoder '{encoder.name}', so that a "
                "candidate that nearly duplicates it could not be told; embed it with: "
                f"dipnet embed {corpus.name} --encoder {encoder.name}"
            )
    samples = [sample for _, sample in labels.labels_of_corpora(stores.db, corpora=held)]
    ids, images = {sample.id for sample in samples}, frozenset(sample.image for sample in samples)
    if not ids:
        return ids, images, np.empty((0, encoder.dim), np.float32)
    rows = corpora.embedded_shards(stores.db, corpora=held, encoder=encoder)
    found, _ = vectors.gather(features.open_shards(stores, rows, encoder), sorted(ids), dim=encoder.dim)
    return ids, images, found
