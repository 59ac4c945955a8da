"""A pool restricted to what lies around known hits, for corpora too large to score whole each round."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.campaign import CampaignRun
from models.plans import SelectionPolicy
from tasks.compute import neighbours
from tasks.pool import Pool
from tasks.probing import Aim


def restrict(run: CampaignRun, policy: SelectionPolicy, pool: Pool, aim: Aim) -> Pool:
    """The pool as it is or, from the second round on and where asked, the neighbours of exemplars and labelled hits.

    The random arm is drawn from the whole pool all the same.
    """
    hits = aim.history.vectors[aim.history.hits & (aim.history.weights == 1.0)]
    if not policy.neighbours or run.round == 1 or aim.scorer is None:
        return pool
    queries = np.vstack([aim.shown.exemplars.positive, hits])
    rows = neighbours.around(queries, (shard.vectors for shard in pool.shards), pool.allowed, count=policy.neighbours)
    return pool._replace(allowed=_masks(pool, rows))


def _masks(pool: Pool, rows: NDArray[np.int64]) -> list[NDArray[np.bool_] | None]:
    starts = np.cumsum([0, *(len(shard) for shard in pool.shards)])
    masks: list[NDArray[np.bool_] | None] = []
    for start, end in pairwise(starts.tolist()):
        mask = np.zeros(end - start, dtype=np.bool_)
        mask[rows[(rows >= start) & (rows < end)] - start] = True
        masks.append(mask)
    return masks
