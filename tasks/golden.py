"""Golden items: images of known answer, mixed into a batch to see how well its annotators answer."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.campaign import CampaignRun
from models.corpus import EncoderSpec
from models.errors import BadInput
from models.learning import ModelVersion
from models.plans import LabelPolicy
from models.states import RequestState
from storage import campaigns, corpora, labels
from storage.stores import Stores

Row = dict[str, Any]


def items(
    stores: Stores, run: CampaignRun, policy: LabelPolicy, class_names: Sequence[str], *, asked: int
) -> list[Row]:
    """Columns of requests of known answer, evenly of every class, for so many others; none where no corpus is named.

    They are drawn by a seed of the run's, so that a second try draws the same. Raises BadInput when there are too few.
    """
    if not policy.golden_corpus or not asked or not policy.golden_share:
        return []
    wanted = max(policy.golden_least, math.ceil(policy.golden_share * asked))  # fewer would conclude nothing
    known = _known(stores, run, policy.golden_corpus, class_names)
    chosen = _evenly(known, wanted, np.random.default_rng(_seed(run.key)))
    if len(chosen) < wanted:
        raise BadInput(
            f"corpus '{policy.golden_corpus}' has {len(chosen)} images of the classes {', '.join(class_names)} that are "
            f"not shown yet, and {wanted} golden items are wanted; add some, or lower golden_share"
        )
    guesses = _predicted(stores, run, [sample_id for sample_id, _ in chosen])
    return [
        {
            "sample_id": sample_id,
            "key": hashlib.sha256(f"{run.key}:golden:{sample_id}".encode()).hexdigest()[:32],
            "expected": class_name,
            "predicted_class": guesses.get(sample_id, ("", 0.0))[0],
            "predicted_probability": guesses.get(sample_id, ("", 0.0))[1],
        }
        for sample_id, class_name in chosen
    ]


def mixed(requests: Sequence[Row], known: Sequence[Row], *, seed: str) -> list[Row]:
    """The requests in their order, with those of known answer at places that chance chose."""
    places = np.random.default_rng(_seed(f"places of {seed}")).integers(0, len(requests) + 1, len(known))
    at: dict[int, list[Row]] = defaultdict(list)
    for place, request in zip(places.tolist(), known, strict=True):
        at[place].append(request)
    return [one for place, request in enumerate([*requests, None]) for one in [*at[place], request] if one is not None]


def _known(stores: Stores, run: CampaignRun, corpus_name: str, class_names: Sequence[str]) -> dict[str, list[str]]:
    """Sample ids of a labelled corpus by class, without exemplars and what the campaign's annotators have seen."""
    corpus = corpora.get_corpus(stores.db, name=corpus_name)
    resolved: dict[str, str] = {}
    for label, sample in labels.labels_of_corpora(stores.db, corpora=[corpus]):
        if label.state is RequestState.LABELLED and label.class_name in class_names:
            resolved[sample.id] = label.class_name
    if not resolved:
        raise BadInput(
            f"corpus '{corpus_name}' has no labels of the classes {', '.join(class_names)}; name a labelled corpus as "
            "golden_corpus"
        )
    seen = campaigns.shown_samples(stores.db, campaign_id=run.campaign_id)
    by_class: dict[str, list[str]] = defaultdict(list)
    for sample_id in sorted(set(resolved) - seen):
        by_class[resolved[sample_id]].append(sample_id)
    return by_class


def _evenly(known: dict[str, list[str]], wanted: int, generator: np.random.Generator) -> list[tuple[str, str]]:
    """(sample id, class) dealt from the classes in turn, each in an order of chance."""
    piles = [[(name, class_name) for name in generator.permutation(ids)] for class_name, ids in sorted(known.items())]
    dealt = [pile[turn] for turn in range(max(map(len, piles), default=0)) for pile in piles if turn < len(pile)]
    return [(str(sample_id), class_name) for sample_id, class_name in dealt[:wanted]]


def _predicted(stores: Stores, run: CampaignRun, sample_ids: Sequence[str]) -> dict[str, tuple[str, float]]:
    """The model's guesses, so that a golden item looks like the others; nothing for what the encoder has not seen."""
    if run.model_id is None:
        return {}
    from tasks import features, heads  # torch and scikit-learn, which a receiver does without

    model = stores.db.get_one(ModelVersion, run.model_id)
    ids, vectors = features.of_known(stores, sample_ids, stores.db.get_one(EncoderSpec, run.encoder_id))
    shares: NDArray[np.float32] = heads.probabilities(heads.load(stores, model), vectors)
    best = shares.argmax(axis=1)
    return {
        sample_id: (model.class_names[place], float(shares[row, place]))
        for row, (sample_id, place) in enumerate(zip(ids, best.tolist(), strict=True))
    }


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
