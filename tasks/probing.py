"""What a run looks for: exemplars and words, the background behind them, earlier answers, and the probes they make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from models.campaign import Campaign, CampaignRun, Issue
from models.corpus import EncoderSpec
from models.errors import BadInput, CorruptData
from models.plans import SelectionPolicy
from models.states import CandidateState, RequestState
from storage import campaigns, labels
from storage.stores import Stores
from storage.vectors import VectorShard
from tasks import features
from tasks.compute import feedback, outlook, scoring
from tasks.compute.portable import Scorer
from tasks.encoders import encode_words

BACKGROUND_ROWS = 20_000
BACKGROUND_SHARDS = 64  # more shards say little more of the mean and covariance, and each must be fetched
SAME = 0.99999  # cosine from which two exemplars are one image
NEUTRAL = ("a photo", "an image", "a picture of something", "a photo of an object", "a scene")
REVIEWED = 0.5  # weight of a person's accept or discard beside a label's 1


class Shown(NamedTuple):
    """An issue's exemplars with the ids of the positive ones."""

    sample_ids: list[str]
    exemplars: scoring.Exemplars


class Aim(NamedTuple):
    """What a run looks for; nothing for the random strategy. `history` is what people said of earlier candidates."""

    shown: Shown
    probes: scoring.Probes | None
    adequacy: outlook.Adequacy | None
    history: feedback.Answers

    @property
    def scorer(self) -> Scorer | None:
        """What to scan with."""
        return self.probes.scorer if self.probes else None


def aim(stores: Stores, campaign: Campaign, run: CampaignRun, ordinary: Sequence[VectorShard]) -> Aim:
    """The run's probes, against what is ordinary in its corpora.

    Raises BadInput for exemplars that contradict one another, or that this encoder cannot see.
    """
    policy, encoder = SelectionPolicy.model_validate(run.policy), stores.db.get_one(EncoderSpec, run.encoder_id)
    shown = _shown(stores, campaign, encoder)
    history = _history(stores, campaign, encoder)
    if policy.strategy == "random":
        return Aim(shown, None, None, history)
    behind = background(stores, ordinary, encoder, seed=policy.seed)
    options = scoring.Options(policy.strategy, shrinkage=policy.shrinkage, text_weight=policy.text_weight)

    first = scoring.probe(shown.exemplars, behind, options, words=_words(stores, encoder, policy))
    adequacy = outlook.adequacy(first.held_out, first.background)
    probes = feedback.refine(first, shown.exemplars, history, behind)

    _require_sight(campaign, encoder, policy, adequacy)
    return Aim(shown, probes, adequacy, history)


def background(stores: Stores, shards: Sequence[VectorShard], encoder: EncoderSpec, *, seed: int) -> scoring.Background:
    """Mean, covariance and some rows of shards, made once for the same shards and kept."""
    if len(shards) > BACKGROUND_SHARDS:
        picked = np.random.default_rng(seed).choice(len(shards), BACKGROUND_SHARDS, replace=False)
        shards = [shards[place] for place in np.sort(picked).tolist()]
    inputs = [encoder.key, BACKGROUND_ROWS, seed, [shard.row.vectors_sha256 for shard in shards]]
    key = f"backgrounds/{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()}.safetensors"
    if stores.objects.exists(key):
        return scoring.Background.from_arrays(from_safetensors(stores.objects.read(key)))
    found = scoring.background([shard.vectors for shard in shards], rows=BACKGROUND_ROWS, seed=seed)
    if not np.isfinite(found.mean).all():
        wrong = [shard.row.vectors_key for shard in shards if not np.isfinite(shard.vectors).all()]
        raise CorruptData(f"vectors in {', '.join(wrong[:3])} hold NaN or infinity; embed their corpus again")
    stores.objects.write(key, bytes(to_safetensors(found.to_arrays())))
    return found


def save(stores: Stores, run: CampaignRun, scorer: Scorer) -> str:
    """Keep a run's probes; the key of the object."""
    key = f"campaigns/{run.key}.safetensors"
    version = np.frombuffer(scorer.version.encode(), dtype=np.uint8)
    scale = np.asarray([scorer.middle, scorer.spread])
    said = {"vectors": scorer.vectors, "offsets": scorer.offsets, "scale": scale, "version": version}
    stores.objects.write(key, bytes(to_safetensors(said)))
    return key


def load(stores: Stores, run: CampaignRun) -> Scorer:
    """A run's probes. Raises BadInput for a run that has none."""
    if not run.scorer_key:
        raise BadInput(f"run {run.id} has no probes: it was drawn by chance, or is not mined yet; mine it first")
    held = from_safetensors(stores.objects.read(run.scorer_key))
    middle, spread = held["scale"].tolist()
    return Scorer(held["vectors"], held["offsets"], middle, spread, held["version"].tobytes().decode())


def shown_of(stores: Stores, run: CampaignRun) -> Shown:
    """The exemplars of a run's issue."""
    campaign = stores.db.get_one(Campaign, run.campaign_id)
    return _shown(stores, campaign, stores.db.get_one(EncoderSpec, run.encoder_id))


def _shown(stores: Stores, campaign: Campaign, encoder: EncoderSpec) -> Shown:
    pairs = campaigns.exemplars_of(stores.db, issue_id=campaign.issue_id)
    positive = [sample for exemplar, sample in pairs if exemplar.positive]
    negative = [sample for exemplar, sample in pairs if not exemplar.positive]
    found = scoring.Exemplars(
        features.of_samples(stores, positive, encoder), features.of_samples(stores, negative, encoder)
    )
    _require_sense(campaign, found)
    return Shown([sample.id for sample in positive], found)


def _require_sense(campaign: Campaign, exemplars: scoring.Exemplars) -> None:
    """Raises BadInput for vectors that are no numbers, for one image several times, and for a contradiction."""
    both = np.vstack([exemplars.positive, exemplars.negative])
    if not np.isfinite(both).all():
        raise BadInput(f"campaign '{campaign.name}': an exemplar's vector holds NaN; embed its corpus again")
    alike = exemplars.positive @ exemplars.positive.T
    if len(alike) > 1 and alike.min() >= SAME:
        raise BadInput(
            f"campaign '{campaign.name}': its {len(alike)} exemplars are one image to this encoder; add others with: "
            "dipnet issue add"
        )
    if (
        len(exemplars.positive)
        and len(exemplars.negative)
        and (exemplars.positive @ exemplars.negative.T).max() >= SAME
    ):
        raise BadInput(
            f"campaign '{campaign.name}': the same image is a positive and a negative exemplar to this encoder; add it "
            "again with the sign that is right: dipnet issue add"
        )


def _require_sight(
    campaign: Campaign, encoder: EncoderSpec, policy: SelectionPolicy, adequacy: outlook.Adequacy
) -> None:
    if adequacy.verdict == "blind" and policy.blind == "refuse" and policy.strategy != "text":
        raise BadInput(
            f"campaign '{campaign.name}': encoder '{encoder.name}' can hardly tell its exemplars from the background "
            f"({adequacy.reason}); add exemplars, take another encoder, or go on with --set blind=warn"
        )


def _words(stores: Stores, encoder: EncoderSpec, policy: SelectionPolicy) -> scoring.Words | None:
    if policy.strategy != "text":
        return None
    network = features.network_of(stores, encoder)
    return scoring.Words(encode_words(network, [policy.text]), encode_words(network, list(NEUTRAL)))


def _history(stores: Stores, campaign: Campaign, encoder: EncoderSpec) -> feedback.Answers:
    """Labels say most; where there is none, a person's accept or discard says something."""
    issue_class = stores.db.get_one(Issue, campaign.issue_id).class_name
    verdicts: dict[str, tuple[bool, float]] = {}
    for candidate in campaigns.all_candidates(stores.db, campaign_id=campaign.id or 0):
        if candidate.state in (CandidateState.ACCEPTED, CandidateState.DISCARDED):
            verdicts[candidate.sample_id] = (candidate.state is CandidateState.ACCEPTED, REVIEWED)
    batches = labels.batches_of(stores.db, campaigns=[campaign.name])
    for request, sample in labels.resolved_of_batches(stores.db, batches=batches):  # oldest first
        verdicts.pop(sample.id, None)
        if request.state is RequestState.LABELLED:
            verdicts[sample.id] = (request.names(issue_class), 1.0)
    ids, found = features.of_known(stores, sorted(verdicts), encoder)
    hits = np.asarray([verdicts[sample_id][0] for sample_id in ids], dtype=np.bool_)
    return feedback.Answers(found, hits, np.asarray([verdicts[sample_id][1] for sample_id in ids], dtype=np.float64))
