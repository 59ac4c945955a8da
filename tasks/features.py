"""Vectors of named samples under one encoder, from the shards that hold them or, failing that, from the images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.corpus import EmbeddedShard, EncoderSpec, Sample
from models.elements import place_of
from models.errors import BadInput, Incompatible
from storage import corpora, vectors
from storage.stores import Stores
from tasks.compute import images
from tasks.compute.encoder import Encoder
from tasks.encoders import load_encoder

ONLY_IMPORTED = (
    "its vectors were imported, so that nothing here can make one of words or of another image; start from images that "
    "the corpus holds, or embed it with an encoder that can be loaded: dipnet embed CORPUS --encoder NAME"
)


def open_shards(stores: Stores, rows: Sequence[EmbeddedShard], encoder: EncoderSpec) -> list[vectors.VectorShard]:
    """The shards' vectors, mapped when they are looked at."""
    return [vectors.VectorShard(stores.objects, row, encoder.dim, stores.cache) for row in rows]


def of_listing(stores: Stores, listing: pa.Table, encoder: EncoderSpec) -> NDArray[np.float32]:
    """Vectors (n, dim) of a dataset's or scenario's rows. Raises Incompatible when the encoder has not seen them all."""
    found, missing = _of_shards(
        stores, listing.column("sample_id").to_pylist(), listing.column("shard_id").to_pylist(), encoder
    )
    if missing:
        raise Incompatible(
            f"{len(missing)} labelled samples have no vectors of encoder '{encoder.name}'; embed their corpora with: "
            f"dipnet embed CORPUS --encoder {encoder.name}"
        )
    return found


def of_samples(stores: Stores, samples: Sequence[Sample], encoder: EncoderSpec) -> NDArray[np.float32]:
    """Vectors (n, dim) of samples from anywhere; those that no shard holds are encoded now.

    Of an encoder that is only declared all shards are looked through, and Incompatible is raised for what none holds.
    """
    shard_ids = [sample.shard_id for sample in samples if sample.shard_id is not None]
    found, missing = _of_shards(stores, [sample.id for sample in samples], shard_ids, encoder)
    if missing and encoder.declared:
        places = [place for place, sample in enumerate(samples) if sample.id in missing]
        found[places] = _anywhere(stores, [samples[place] for place in places], encoder)
        return found
    for place, sample in enumerate(samples):
        if sample.id in missing:
            data, network = stores.read_uri(sample.uri), network_of(stores, encoder)
            found[place] = vector_of(stores, network, data, uri=sample.uri)
    return found


def _anywhere(stores: Stores, samples: Sequence[Sample], encoder: EncoderSpec) -> NDArray[np.float32]:
    """Vectors (n, dim) of distinct samples from any corpus that has some of this encoder. Raises Incompatible."""
    rows = corpora.shards_under(stores.db, encoder_id=encoder.id or 0)
    found, missing = vectors.gather(open_shards(stores, rows, encoder), [one.id for one in samples], dim=encoder.dim)
    if missing:
        uri = next(one.uri for one in samples if one.id == missing[0])
        raise Incompatible(f"'{uri}' is in no corpus that has vectors of '{encoder.name}', and {ONLY_IMPORTED}")
    return found


def vector_of(stores: Stores, network: Encoder, data: bytes, *, uri: str) -> NDArray[np.float32]:
    """The unit vector (dim,) of what a URI names, whose image has these bytes. Raises BadInput for what cannot be decoded."""
    try:
        looked = images.look(data, network.frame, [place_of(uri).box], images.Limits(stores.settings.max_pixels))
        (pixels,) = looked.pixels
        if isinstance(pixels, images.Reason):
            raise images.Unreadable(pixels)
    except images.Unreadable as problem:
        raise BadInput(f"'{uri}' is no image that dipnet can read ({problem.reason}); give another") from None
    found: NDArray[np.float32] = network.encode_pixels(np.stack([pixels]))[0]
    return found


def _of_shards(
    stores: Stores, sample_ids: Sequence[str], shard_ids: Sequence[int], encoder: EncoderSpec
) -> tuple[NDArray[np.float32], list[str]]:
    rows = corpora.embedded_by_shard(stores.db, shard_ids=shard_ids, encoder_id=encoder.id or 0)
    return vectors.gather(open_shards(stores, rows, encoder), sample_ids, dim=encoder.dim)


def of_stored(stores: Stores, samples: Sequence[Sample], encoder: EncoderSpec) -> tuple[NDArray[np.float32], list[str]]:
    """Vectors (n, dim) of distinct samples, zeros for those that no shard holds, and the ids of these."""
    shard_ids = [sample.shard_id for sample in samples if sample.shard_id is not None]
    return _of_shards(stores, [sample.id for sample in samples], shard_ids, encoder)


def network_of(stores: Stores, encoder: EncoderSpec) -> Encoder:
    """The encoder itself. Raises Incompatible when what loads today is not what made the vectors, and for one declared."""
    if encoder.declared:
        raise Incompatible(f"encoder '{encoder.name}' is only declared: {ONLY_IMPORTED}")
    network = load_encoder(encoder.name, stores.settings.device)
    if network.spec.key != encoder.key:
        raise Incompatible(
            f"encoder '{encoder.name}' has changed since the corpora were embedded; embed them again with: "
            f"dipnet embed CORPUS --encoder {encoder.name}"
        )
    return network


def of_known(stores: Stores, sample_ids: Sequence[str], encoder: EncoderSpec) -> tuple[list[str], NDArray[np.float32]]:
    """Those of the samples that the encoder has seen, and their vectors (m, dim); the others are left out, not encoded."""
    samples = list(corpora.known_samples(stores.db, ids=sample_ids).values())
    shard_ids = [sample.shard_id for sample in samples if sample.shard_id is not None]
    ids = [sample.id for sample in samples]
    found, missing = _of_shards(stores, ids, shard_ids, encoder)
    unseen = set(missing)
    kept = [place for place, sample_id in enumerate(ids) if sample_id not in unseen]
    return [ids[place] for place in kept], found[kept]
