"""ingest-corpus and embed-corpus: from a prefix to vectors."""

from prefect import flow

from models.plans import EmbedPlan, IngestPlan
from models.values import Embedded, Ingested
from tasks import embedding, ingesting, publishing

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
    outcomes = []
    for corpus in plan.corpora:
        pending = embedding.pending_shards(corpus, plan.encoder)
        size = max(1, -(-len(pending) // GROUPS))
        for start in range(0, len(pending), size):
            embedding.embed_shards(pending[start : start + size], plan.encoder, plan.batch_size)
        outcomes.append(embedding.count_embedded(corpus, plan.encoder, done=len(pending)))
    publishing.publish("embedded", outcomes)
    return outcomes
