"""What there is, as rows that a person or a script can read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from models.campaign import CampaignRun
from models.corpus import Shard
from storage import campaigns, corpora, labels
from storage.stores import Stores, open_stores
from tasks.ingesting import READ_COLUMNS, manifest_schema, read_manifest
from tasks.shards import quarantined_rows

Row = dict[str, Any]


def corpora_rows() -> list[Row]:
    """A row a corpus."""
    with open_stores() as stores:
        return [
            {
                "name": corpus.name,
                "split": corpus.split.value if corpus.split else "none",
                "images": sum(shard.images for shard in corpora.shards_of(stores.db, corpus_id=corpus.id or 0)),
                "vectors": {name: n for name, _, n in corpora.embeddings_of(stores.db, corpus_id=corpus.id or 0)},
                "prefix": corpus.prefix,
            }
            for corpus in corpora.list_corpora(stores.db)
        ]


def corpus_record(name: str) -> Row:
    """One corpus: shards, columns to filter on, vectors by encoder, and images in quarantine by reason."""
    with open_stores() as stores:
        corpus = corpora.get_corpus(stores.db, name=name)
        shards = corpora.shards_of(stores.db, corpus_id=corpus.id or 0)
        quarantined = Counter(
            reason
            for row in corpora.read_shards(stores.db, corpus_id=corpus.id or 0)
            for _, reason in quarantined_rows(stores, corpus, row)
        )
        return {
            "name": corpus.name,
            "prefix": corpus.prefix,
            "split": corpus.split.value if corpus.split else "none",
            "label_column": corpus.label_column,
            "shards": len(shards),
            "images": sum(shard.images for shard in shards),
            "vanished": corpus.vanished,
            "columns": _columns(stores, shards),
            "vectors": {name: n for name, _, n in corpora.embeddings_of(stores.db, corpus_id=corpus.id or 0)},
            "quarantined": dict(quarantined),
        }


def _columns(stores: Stores, shards: Sequence[Shard]) -> list[str]:
    """What a filter may ask for: columns of the first and the newest manifest, and what reading the images finds."""
    there = [manifest_schema(stores, shard).names for shard in (*shards[:1], *shards[-1:])]
    return list(dict.fromkeys(name for names in (*there, READ_COLUMNS if shards else ()) for name in names))


def embedding_rows() -> list[Row]:
    """A row a corpus and encoder."""
    with open_stores() as stores:
        return [
            {
                "corpus": corpus.name,
                "encoder": encoder.name,
                "dim": encoder.dim,
                "vectors": vectors,
                "shards": f"{done}/{len(corpora.shards_of(stores.db, corpus_id=corpus.id or 0))}",
                "queries": "images of corpora only" if encoder.declared else "any image",
                "key": encoder.key[:12],
            }
            for corpus, encoder, done, vectors in corpora.embedding_sets(stores.db)
        ]


def quarantine_rows(name: str) -> list[Row]:
    """A row an unreadable image, with its reason."""
    with open_stores() as stores:
        corpus = corpora.get_corpus(stores.db, name=name)
        found: list[Row] = []
        for row in corpora.read_shards(stores.db, corpus_id=corpus.id or 0):
            rows = quarantined_rows(stores, corpus, row)
            if rows:
                keys = read_manifest(stores, stores.db.get_one(Shard, row.shard_id)).column("key")
                found += [{"key": keys[number].as_py(), "reason": reason} for number, reason in rows]
        return found


def issue_rows() -> list[Row]:
    """A row an issue."""
    with open_stores() as stores:
        return [_issue(stores, issue.name) for issue in campaigns.list_issues(stores.db)]


def issue_record(name: str) -> Row:
    """One issue with its exemplars."""
    with open_stores() as stores:
        issue = campaigns.get_issue(stores.db, name=name)
        pairs = campaigns.exemplars_of(stores.db, issue_id=issue.id or 0)
        shown = [f"{'+' if exemplar.positive else '-'} {sample.id[:12]} {sample.uri}" for exemplar, sample in pairs]
        return {**_issue(stores, name), "description": issue.description, "shown_by": shown}


def campaign_rows() -> list[Row]:
    """A row a campaign run."""
    with open_stores() as stores:
        return [
            {"campaign": campaign.name, **_run(stores, run)}
            for campaign in campaigns.list_campaigns(stores.db)
            for run in campaigns.runs_of(stores.db, campaign_id=campaign.id or 0)
        ]


def candidate_rows(name: str) -> list[Row]:
    """A row a candidate of a campaign, run by run, best first: why each image is there."""
    with open_stores() as stores:
        campaign = campaigns.get_campaign(stores.db, name=name)
        found = []
        for run in campaigns.runs_of(stores.db, campaign_id=campaign.id or 0):
            candidates = campaigns.candidates_of(stores.db, run_id=run.id or 0)
            samples = corpora.known_samples(stores.db, ids=[candidate.sample_id for candidate in candidates])
            found += [
                {
                    "run": run.id,
                    "rank": candidate.rank + 1,
                    "sample": candidate.sample_id[:12],
                    "score": round(candidate.score, 4),
                    "scored_by": candidate.score_version,
                    "arm": candidate.arm.value,
                    "prototype": candidate.prototype,
                    "state": candidate.state.value,
                    "predicted": candidate.predicted_class,
                    "nearest_exemplar": candidate.nearest_exemplar[:12],
                    "cosine": round(candidate.similarity, 4),
                    "near_duplicates": candidate.near_duplicates,
                    "image": samples[candidate.sample_id].uri,
                }
                for candidate in candidates
            ]
        return found


def exclusion_rows(name: str) -> list[Row]:
    """A row a reason and run: how many elements were left out."""
    with open_stores() as stores:
        campaign = campaigns.get_campaign(stores.db, name=name)
        return [
            {"run": run.id, "reason": reason, "elements": count}
            for run in campaigns.runs_of(stores.db, campaign_id=campaign.id or 0)
            for reason, count in sorted(run.excluded.items())
        ]


def _issue(stores: Stores, name: str) -> Row:
    issue = campaigns.get_issue(stores.db, name=name)
    pairs = campaigns.exemplars_of(stores.db, issue_id=issue.id or 0)
    positive = sum(exemplar.positive for exemplar, _ in pairs)
    return {
        "name": issue.name,
        "class_name": issue.class_name,
        "state": issue.state.value,
        "version": issue.version,
        "positive": positive,
        "negative": len(pairs) - positive,
        "slice": issue.slice_where,
    }


def _run(stores: Stores, run: CampaignRun) -> Row:
    batch = labels.find_batch(stores.db, run_id=run.id or 0)
    states = labels.count_states(stores.db, batch_id=batch.id or 0) if batch else {}
    return {
        "run": run.id,
        "series": run.series,
        "round": run.round,
        "state": run.state.value,
        "strategy": run.policy["strategy"],
        "budget": run.policy["budget"],
        "scanned": run.scanned,
        "candidates": len(campaigns.candidates_of(stores.db, run_id=run.id or 0)),
        "excluded": run.excluded,
        "requests": {state.value: count for state, count in states.items()},
        "batch": f"{batch.id} {batch.state.value}" if batch else "",
        "labeler": batch.labeler if batch else "",
    }
