"""ingest-corpus and embed-corpus: from images, wherever they lie, to vectors."""

import time

from prefect import flow

from models.plans import EmbedPlan, IngestPlan
from models.settings import load_settings
from models.values import Embedded, Ingested
from tasks import embedding, ingesting, publishing
from tasks.runners import runner_of

GROUPS = 200  # a self-hosted Prefect server is at ease with a few hundred task runs a flow


@flow(name="ingest-corpus")
def ingest_corpus(plan: IngestPlan) -> Ingested:
    """List the images under a prefix into a corpus; only what is new is added.

    Args:
        plan: Which corpus, where its images lie, and what its labels may be used for.
    """
    return ingesting.ingest(plan)


@flow(name="embed-corpus")
def embed_corpus(plan: EmbedPlan) -> list[Embedded]:
    """Turn the images of corpora into vectors; shards that have vectors are skipped.

    Args:
        plan: Which corpora, and with which encoder.
    """
    settings = load_settings()
    outcomes = []
    with runner_of(settings.model_copy(update={"runner": plan.runner or settings.runner})) as runner:
        for corpus in plan.corpora:
            started = time.monotonic()
            pending = embedding.pending_shards(corpus, plan.encoder, backend=plan.backend, retry=plan.retry)
            size = max(1, -(-len(pending) // GROUPS))
            groups = list(runner.embed([pending[at : at + size] for at in range(0, len(pending), size)], plan))
            left = [shard for group in groups for shard in group.left]
            if left:  # another run is at work on them
                groups += runner.embed([left], plan, wait=True)
            seconds = time.monotonic() - started
            outcomes.append(embedding.count_embedded(corpus, plan.encoder, groups=groups, seconds=seconds))
    publishing.publish("embedded", outcomes)
    return outcomes
