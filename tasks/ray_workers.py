"""What encodes on a machine of a Ray cluster. Imported where Ray is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from models.values import EmbeddedGroup
from storage.claims import claims_of
from tasks.embedding import Embedder
from tasks.ray_decoding import RayDecoders, settle


class EmbeddingActor:
    """One encoder on one machine of the cluster: the same pipeline as everywhere, with Ray's workers as its decoders."""

    def __init__(self, environment: Mapping[str, str], workers: int, threads: int) -> None:
        self._settings = settle(tuple(environment.items()))
        torch.set_num_threads(threads)  # Ray allows one
        self._decoders = RayDecoders(environment, workers)
        self._embedder: Embedder | None = None

    def embed(self, shard_ids: Sequence[int], encoder: str, batch_size: int, retry: bool, wait: bool) -> EmbeddedGroup:
        """As `embedding.embed_shards`."""
        with claims_of(self._settings) as claims:
            embedder = Embedder(self._settings, encoder, claims, self._decoders, retry=retry)
            self._embedder = embedder
            embedder.embed_all(shard_ids, batch_size, wait=wait)
        self._embedder = None
        return embedder.outcome()

    def so_far(self) -> EmbeddedGroup:
        """What was done until now of what it is at; asked while it works."""
        embedder = self._embedder
        return embedder.outcome() if embedder else EmbeddedGroup()
