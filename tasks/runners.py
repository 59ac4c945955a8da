"""Where groups of shards are embedded: here, one after the other, or on a Ray cluster, several at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from models.plans import EmbedPlan
from models.settings import Settings
from models.values import EmbeddedGroup
from tasks import embedding


class Runner(Protocol):
    """Somewhere that embeds shards. A group of them is one step."""

    def embed(self, groups: Sequence[Sequence[int]], plan: EmbedPlan) -> Iterator[EmbeddedGroup]:
        """What became of each group, in any order."""
        ...


class LocalRunner:
    """This process, its decoders and its encoder."""

    def embed(self, groups: Sequence[Sequence[int]], plan: EmbedPlan) -> Iterator[EmbeddedGroup]:
        """A group after the other."""
        for group in groups:
            yield embedding.embed_shards(group, plan.encoder, plan.batch_size, retry=plan.retry)


def runner_of(settings: Settings) -> Runner:
    """The runner that the settings name."""
    del settings
    return LocalRunner()
