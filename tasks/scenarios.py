"""Named, frozen subsets of evaluation data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from models.corpus import Corpus, Shard
from models.errors import BadInput
from models.learning import Scenario
from models.states import ScenarioKind, Split
from storage import campaigns, corpora, labels, runs, tables
from storage.stores import Stores, open_stores
from tasks.datasets import listing_of
from tasks.ingesting import read_manifest
from tasks.steps import step

EVALUATION = (Split.DEVELOPMENT, Split.HOLDOUT)
OVERALL = "all-holdout"


@step()
def freeze_scenario(name: str, corpus_names: Sequence[str], where: str = "", issue_name: str = "") -> int:
    """Freeze the labelled samples of evaluation corpora that meet a condition, under a name; a known name stays frozen."""
    with open_stores() as stores:
        found = runs.find_scenario(stores.db, name=name)
        if found is None:
            held = [_evaluation_corpus(stores, corpus_name) for corpus_name in sorted(set(corpus_names))]
            issue = campaigns.get_issue(stores.db, name=issue_name) if issue_name else None

            listing = _where(stores, held, where)
            if not listing.num_rows:
                raise BadInput(
                    f"scenario '{name}' would be empty: no labelled sample meets '{where}'; change the condition"
                )

            key = f"scenarios/{name}.parquet"
            found = Scenario(
                name=name,
                kind=ScenarioKind.ISSUE if issue else ScenarioKind.SLICE,
                issue_id=issue.id if issue else None,
                corpora=[corpus.name for corpus in held],
                where=where,
                listing_key=key,
                listing_sha256=stores.objects.write(key, tables.to_bytes(listing)),
                samples=listing.num_rows,
            )
            stores.db.add(found)
            stores.db.flush()
    return found.id or 0


@step()
def default_scenarios() -> list[str]:
    """One scenario for every evaluation corpus, under the corpus's name, frozen when it is new."""
    with open_stores() as stores:
        held = [c.name for split in EVALUATION for c in corpora.list_corpora(stores.db, split=split)]
    for name in held:
        freeze_scenario(name, [name])
    return held


@step()
def overall_scenario() -> str:
    """The name of the scenario over all holdout corpora, frozen when it is new."""
    freeze_scenario(OVERALL, _holdout_corpora())
    return OVERALL


@step()
def issue_scenario(issue_name: str) -> str:
    """The name of the scenario that holds an issue's slice of every holdout corpus, frozen when it is new."""
    with open_stores() as stores:
        where = campaigns.get_issue(stores.db, name=issue_name).slice_where
    freeze_scenario(f"issue-{issue_name}", _holdout_corpora(), where, issue_name)
    return f"issue-{issue_name}"


def _holdout_corpora() -> list[str]:
    with open_stores() as stores:
        held = [corpus.name for corpus in corpora.list_corpora(stores.db, split=Split.HOLDOUT)]
    if not held:
        raise BadInput(
            "there is no holdout corpus; add one with: dipnet corpus add NAME PREFIX --split holdout --labels COLUMN"
        )
    return held


def _evaluation_corpus(stores: Stores, name: str) -> Corpus:
    corpus = corpora.get_corpus(stores.db, name=name)
    if corpus.split not in EVALUATION:
        raise BadInput(
            f"corpus '{name}' is not for evaluation (split: {corpus.split or 'none'}); "
            "name one that was added with --split development or --split holdout"
        )
    return corpus


def _where(stores: Stores, held: Sequence[Corpus], where: str) -> pa.Table:
    """Labelled samples of these corpora whose manifest row meets the condition, with the manifest's columns."""
    listing = listing_of(labels.labels_of_corpora(stores.db, corpora=held), without=frozenset())
    if not listing.num_rows:
        raise BadInput(
            f"no labels in {', '.join(corpus.name for corpus in held)} yet; embed it first with: dipnet embed {held[0].name}"
        )
    metadata = tables.concat([part for corpus in held for part in _metadata(stores, corpus)])
    numbered = metadata.append_column("__row", pa.array(range(metadata.num_rows), pa.int64()))
    first = numbered.group_by("sample_id").aggregate([("__row", "min")]).column("__row_min")
    metadata = metadata.take(first)  # the same bytes may lie there twice
    joined = listing.join(metadata, keys="sample_id", join_type="left outer").sort_by("sample_id")
    return tables.where(joined, where)


def _metadata(stores: Stores, corpus: Corpus) -> Iterator[pa.Table]:
    """The manifest columns of a corpus's read images with their sample ids, shard by shard."""
    for row in corpora.read_shards(stores.db, corpus_id=corpus.id or 0):
        shard = stores.db.get_one(Shard, row.shard_id)
        manifest, reads = read_manifest(stores, shard), tables.from_bytes(stores.objects.read(row.read_key))
        ours = [
            name for name in ("key", "etag", "bytes", "class_name", "shard_id", "uri") if name in manifest.column_names
        ]
        yield manifest.drop_columns(ours).append_column("sample_id", reads.column("sample_id"))
