"""Interactive search by image or text, and what a person does with an issue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.campaign import Issue
from models.corpus import EncoderSpec, Sample
from models.elements import apart, place_of
from models.errors import BadInput, CorruptData, NotFound, Unavailable
from models.plans import IssuePlan
from models.states import Split
from storage import campaigns, corpora, tables, vectors
from storage.stores import Stores, open_stores
from tasks import elements, features, indexing
from tasks.compute import images, scan
from tasks.encoders import encode_words
from tasks.ingesting import read_manifest

FILES = ("key", "etag", "bytes")  # of a manifest: where an image lies, which no slice is about


def search(
    corpus_name: str, *, image: Path | None, text: str, encoder_name: str, top: int, exact: bool = False
) -> list[dict[str, Any]]:
    """The elements of a corpus most like an image or a text, best first, with cosines.

    An index of the corpus as it is now is used where there is one; otherwise, or with `exact`, everything is scanned.
    """
    if (image is None) == (not text):
        raise BadInput("give one of --image FILE and --text WORDS")
    with open_stores() as stores:
        corpus = corpora.get_corpus(stores.db, name=corpus_name)
        encoder = corpora.get_encoder(stores.db, name=encoder_name or stores.settings.encoder)
        rows = corpora.embedded_shards(stores.db, corpora=[corpus], encoder=encoder)
        shards = features.open_shards(stores, rows, encoder)
        query = _query(stores, encoder, image, text)

        ranked = None if exact else _indexed(stores, corpus_name, encoder.name, query, top)
        if ranked is None:
            ranked = scan.best(query, (shard.vectors for shard in shards), keep=top)

        taken = vectors.take(shards, np.asarray(ranked.rows), dim=encoder.dim)
    return [
        {"rank": rank, "cosine": round(float(score), 4), "sample_id": sample_id, "image": uri}
        for rank, (score, sample_id, uri) in enumerate(zip(ranked.scores, taken.sample_ids, taken.uris, strict=True), 1)
    ]


def _indexed(
    stores: Stores, corpus_name: str, encoder_name: str, query: NDArray[np.float32], top: int
) -> scan.Ranked | None:
    """What an index finds; None where there is none for the vectors that are there now."""
    try:
        return indexing.open_index(stores, [corpus_name], encoder_name).search(query, keep=top)
    except NotFound:
        return None


def new_issue(name: str, *, class_name: str, where: str, description: str) -> dict[str, Any]:
    """Open an issue. Raises BadInput when it is open already, or when its name, class or slice cannot be used."""
    plan = IssuePlan(issue=name, class_name=class_name, where=where, description=description)
    with open_stores() as stores:
        if campaigns.find_issue(stores.db, name=name) is not None:
            raise BadInput(f"issue '{name}' exists; see: dipnet issue show {name}")
        _require_slice(stores, plan)
        issue = Issue(name=name, class_name=class_name, slice_where=where, description=description)
        stores.db.add(issue)
        stores.db.flush()
        return {"name": issue.name, "class_name": issue.class_name, "state": issue.state.value}


def _require_slice(stores: Stores, plan: IssuePlan) -> None:
    """Raises BadInput for a condition that the images of no evaluation corpus could meet: their columns are not so.

    A condition is about holdout data; where there is none yet, about development data, and where there is neither it is
    looked at when the issue is first evaluated.
    """
    for split in (Split.HOLDOUT, Split.DEVELOPMENT):
        held = corpora.list_corpora(stores.db, split=split)
        shards = [shard for one in held for shard in corpora.shards_of(stores.db, corpus_id=one.id or 0)[:1]]
        if shards and plan.where.strip():
            columns = tables.concat([read_manifest(stores, shard).slice(0, 0) for shard in shards])
            tables.matching(columns.drop_columns([c for c in FILES if c in columns.column_names]), plan.where)
        if shards:
            return


def add_exemplars(issue_name: str, paths: list[Path], *, positive: bool) -> dict[str, Any]:
    """Add image files as exemplars; all of them or, when one cannot be read, none."""
    with open_stores() as stores:
        issue = campaigns.get_issue(stores.db, name=issue_name)
        samples = [_sample_of(stores, path) for path in paths]
        corpora.ensure_samples(stores.db, samples=samples)
        added = campaigns.add_exemplars(stores.db, issue=issue, sample_ids=[s.id for s in samples], positive=positive)
        told: dict[str, Any] = {"issue": issue.name, "added": added.new}
        if added.turned:
            signs = ("negative", "positive") if positive else ("positive", "negative")
            told["changed"] = f"{added.turned} from {signs[0]} to {signs[1]}"
        if added.known:
            told["there_already"] = added.known
        return {**told, "version": issue.version}


def _sample_of(stores: Stores, path: Path) -> Sample:
    """An image file, or a box of one: FILE#xywh=x,y,width,height."""
    uri = str(path.absolute())
    data = _bytes_of(stores, uri)
    try:
        elements.cut(data, place_of(uri).box, max_pixels=stores.settings.max_pixels)
    except images.Unreadable as problem:
        raise BadInput(f"'{path}' is no image that dipnet can read ({problem.reason}); give another") from None
    sample_id = elements.id_of(data, uri)
    return Sample(id=sample_id, uri=uri, image_id=apart(sample_id, images.fingerprint(data)))


def _bytes_of(stores: Stores, uri: str) -> bytes:
    try:
        return stores.read_uri(uri)
    except (NotFound, Unavailable, CorruptData) as problem:
        raise BadInput(f"{problem}; give an image file") from None


def _query(stores: Stores, encoder: EncoderSpec, image: Path | None, text: str) -> NDArray[np.float32]:
    """The unit vector (1, dim) of words, or of an image: as a corpus holds it, or else encoded."""
    if image is None:
        return encode_words(features.network_of(stores, encoder), [text])
    return features.of_samples(stores, [_sample_of(stores, image)], encoder)
