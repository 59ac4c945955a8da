"""Where groups of shards are embedded: here, one after the other, or on a Ray cluster, several at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from typing import Protocol

from models.errors import BadSettings
from models.plans import EmbedPlan
from models.settings import Settings
from models.values import EmbeddedGroup
from tasks import embedding

BEFORE_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers run what runs here, not another `uv run`
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # which has all servers of a node listen on 127.0.0.1 alone


class Runner(Protocol):
    """Somewhere that embeds shards. A group of them is one step."""

    def embed(self, groups: Sequence[Sequence[int]], plan: EmbedPlan, *, wait: bool = False) -> Iterator[EmbeddedGroup]:
        """What became of each group, in any order. With `wait`, what another run is at work on is waited for."""
        ...


class LocalRunner:
    """This process, its decoders and its encoder."""

    def embed(self, groups: Sequence[Sequence[int]], plan: EmbedPlan, *, wait: bool = False) -> Iterator[EmbeddedGroup]:
        """A group after the other."""
        for group in groups:
            yield embedding.embed_shards(group, plan.encoder, plan.batch_size, retry=plan.retry, wait=wait)


@contextmanager
def runner_of(settings: Settings) -> Iterator[Runner]:
    """The runner that the settings name, for the block. Raises BadSettings for Ray where it is not installed."""
    if settings.runner == "local":
        yield LocalRunner()
        return
    if find_spec("ray") is None:
        raise BadSettings("Ray is not installed; add it with: uv sync --extra ray, or embed with --runner local")
    _before_ray(settings)
    from tasks.ray_runner import RayRunner

    with closing(RayRunner(settings)) as runner:
        yield runner


def _before_ray(settings: Settings) -> None:
    """What Ray reads from the environment when it is imported; somebody's own choice stays."""
    for name, value in (BEFORE_RAY if settings.ray_address else BEFORE_RAY | LOOPBACK).items():
        os.environ.setdefault(name, value)
