"""Dataset versions and scenarios as people and scripts see them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from models.campaign import Issue
from models.learning import Scenario
from storage import runs, tables
from storage.stores import open_stores
from tasks.datasets import read_listing


def dataset_rows() -> list[dict[str, Any]]:
    """Every dataset version, oldest first."""
    with open_stores() as stores:
        return [
            {
                "dataset": one.id,
                "parent": one.parent_id,
                "samples": one.samples,
                "splits": one.splits,
                "classes": len(one.class_names),
                "adds_batches": one.adds_batches,
                "left_out": sum(one.excluded.values()),
                "content_hash": one.content_hash[:12],
            }
            for one in runs.list_datasets(stores.db)
        ]


def dataset_record(dataset_id: int) -> dict[str, Any]:
    """All about one dataset version. Raises NotFound."""
    with open_stores() as stores:
        found = runs.get_dataset(stores.db, dataset_id=dataset_id)
        listing = read_listing(stores, found)
        return {
            "dataset": found.id,
            "content_hash": found.content_hash,
            "parent": found.parent_id,
            "corpora": found.corpora,
            "adds_batches": found.adds_batches,
            "samples": found.samples,
            "splits": found.splits,
            "groups": len(set(listing.column("group").to_pylist())),
            "left_out": found.excluded,
            "classes": dict(sorted(Counter(listing.column("class_name").to_pylist()).items())),
            "created_at": found.created_at,
        }


def dataset_diff(before: int, after: int) -> dict[str, list[dict[str, Any]]]:
    """Samples of two dataset versions that are added, removed, relabelled or moved to another split, by sample id."""
    with open_stores() as stores:
        one, other = (
            {row["sample_id"]: row for row in read_listing(stores, runs.get_dataset(stores.db, dataset_id=number)).to_pylist()}
            for number in (before, after)
        )  # fmt: skip
    told = ("sample_id", "class_name", "split", "uri")

    def changed(column: str) -> list[dict[str, Any]]:
        both = [(one[sample_id], other[sample_id]) for sample_id in sorted(one.keys() & other.keys())]
        return [
            {"sample_id": b["sample_id"], "before": a[column], "after": b[column], "uri": b["uri"]}
            for a, b in both
            if a[column] != b[column]
        ]

    return {
        "added": [{name: other[key][name] for name in told} for key in sorted(other.keys() - one.keys())],
        "removed": [{name: one[key][name] for name in told} for key in sorted(one.keys() - other.keys())],
        "relabelled": changed("class_name"),
        "moved": changed("split"),
    }


def scenario_rows() -> list[dict[str, Any]]:
    """The newest version of every scenario, by name."""
    with open_stores() as stores:
        return [
            {
                "scenario": one.reference,
                "kind": one.kind.value,
                "corpora": one.corpora,
                "where": one.where,
                "samples": one.samples,
            }
            for one in runs.newest_scenarios(stores.db)
        ]


def scenario_record(name: str) -> dict[str, Any]:
    """All about one version of a scenario. Raises NotFound."""
    with open_stores() as stores:
        found = runs.get_scenario(stores.db, name=name)
        listing = tables.read(stores.objects, found.listing_key, found.listing_sha256)
        issue = stores.db.get_one(Issue, found.issue_id).name if found.issue_id else ""
        parent = stores.db.get_one(Scenario, found.parent_id) if found.parent_id else None
        return {
            "scenario": found.reference,
            "kind": found.kind.value,
            "issue": issue,
            "parent": parent.reference if parent else "",
            "corpora": found.corpora,
            "where": found.where,
            "group_by": found.group_by,
            "samples": found.samples,
            "groups": _groups(listing),
            "classes": dict(sorted(Counter(listing.column("class_name").to_pylist()).items())),
            "created_at": found.created_at,
        }


def _groups(listing: pa.Table) -> int:
    return len(set(listing.column("group").to_pylist())) if "group" in listing.column_names else listing.num_rows
