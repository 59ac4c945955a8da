"""A corpus's vectors as a folder in clip-retrieval's layout, which its index builder and its viewer read, and dipnet too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.corpus import EmbeddedShard, EncoderSpec, Shard
from models.errors import BadInput
from models.values import VectorsExported
from storage import corpora, tables
from storage.objects import verified
from storage.stores import Stores, open_stores
from storage.vector_files import METADATA, VECTORS
from tasks.compute.encoder import Spec
from tasks.ingesting import read_manifest
from tasks.outputs import new_folder
from tasks.steps import step, track

DESCRIPTION = "dipnet.json"  # says that a folder is an export of ours, and of what; others overlook it
FORMAT = "dipnet-embeddings-1"
MOST_BYTES = 100_000_000
OURS = ("image_path", "sample_id")


class Said(BaseModel):
    """The encoder, as a folder from outside tells of it."""

    model_config = ConfigDict(strict=True)

    name: str = Field(min_length=1, max_length=1_000)
    dim: int = Field(ge=1, le=65_536)
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    preprocessing: str = Field(max_length=20_000)


@step()
def export_vectors(corpus_name: str, folder: Path, encoder_name: str = "") -> VectorsExported:
    """Write the vectors of a corpus, whole or not at all: img_emb/img_emb_N.npy and metadata/metadata_N.parquet.

    A row of metadata has image_path, sample_id and the manifest's columns. An earlier export in that folder gives way,
    unless it is the same already. Raises BadInput for a folder that holds anything else.
    """
    target = folder.absolute()
    with open_stores() as stores:
        corpus = corpora.get_corpus(stores.db, name=corpus_name)
        encoder = corpora.get_encoder(stores.db, name=encoder_name or stores.settings.encoder)
        rows = corpora.embedded_shards(stores.db, corpora=[corpus], encoder=encoder)
        parts = [(row, stores.db.get_one(Shard, row.shard_id)) for row in rows if row.readable]
        description = _description(corpus.name, encoder, parts)
        reused = _holds(target, description, len(parts))
        if not reused:
            with new_folder(target, replace=True) as partial:
                _write(stores, partial, parts)
                (partial / DESCRIPTION).write_bytes(description)
    return VectorsExported(
        folder=str(target),
        corpus=corpus_name,
        encoder=encoder.name,
        vectors=sum(row.readable for row, _ in parts),
        parts=len(parts),
        reused=reused,
    )


def spec_in(folder: Path) -> Spec | None:
    """What made the vectors of an export of ours; None for a folder of anybody else's. Raises BadInput for a broken one."""
    record = _record_in(folder)
    if record is None:
        return None
    try:
        said = Said.model_validate(record.get("encoder"))
    except ValidationError:
        raise BadInput(f"'{folder / DESCRIPTION}' does not say what made the vectors; export them anew") from None
    return Spec(said.name, said.dim, said.weights_sha256, said.preprocessing)


def _description(corpus: str, encoder: EncoderSpec, parts: Sequence[tuple[EmbeddedShard, Shard]]) -> bytes:
    record = {
        "format": FORMAT,
        "corpus": corpus,
        "encoder": {name: getattr(encoder, name) for name in Said.model_fields},
        "parts": [
            {
                "vectors": row.readable,
                "vectors_sha256": row.vectors_sha256,
                "ids_sha256": row.ids_sha256,
                "manifest_sha256": shard.manifest_sha256,
            }
            for row, shard in parts
        ],
    }
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()


def _holds(folder: Path, description: bytes, parts: int) -> bool:
    """Whether a folder holds just this export. Raises BadInput where it holds something that is no export."""
    if not folder.exists() and not folder.is_symlink():
        return False
    if not folder.is_dir() or folder.is_symlink():
        raise BadInput(f"'{folder}' is no folder; name a new one")
    there = sorted(path.name for path in folder.iterdir())
    if there and (_record_in(folder) is None or set(there) - {DESCRIPTION, VECTORS, METADATA}):
        raise BadInput(f"'{folder}' holds something else ({', '.join(there[:3])}); name a new or an empty folder")
    files = [file for number in range(parts) for file in _files(folder, number)]
    return bool(there) and (folder / DESCRIPTION).read_bytes() == description and all(file.is_file() for file in files)


def _record_in(folder: Path) -> dict[str, Any] | None:
    """What an export of ours says of itself; None for any other folder."""
    file = folder / DESCRIPTION
    try:
        if not file.is_file() or file.stat().st_size > MOST_BYTES:
            return None
        record = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def _files(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / VECTORS / f"{VECTORS}_{number}.npy", folder / METADATA / f"{METADATA}_{number}.parquet"


def _write(stores: Stores, folder: Path, parts: Sequence[tuple[EmbeddedShard, Shard]]) -> None:
    for name in (VECTORS, METADATA):
        (folder / name).mkdir()
    for number, (row, shard) in enumerate(track(parts, "exporting vectors")):
        vectors, metadata = _files(folder, number)
        vectors.write_bytes(verified(stores.objects, row.vectors_key, row.vectors_sha256))
        metadata.write_bytes(tables.to_bytes(_metadata(stores, row, shard)))


def _metadata(stores: Stores, row: EmbeddedShard, shard: Shard) -> pa.Table:
    """A row a vector: where its image lies, its sample id, and the manifest's columns."""
    ids = tables.from_bytes(verified(stores.objects, row.ids_key, row.ids_sha256))
    manifest = read_manifest(stores, shard).take(ids.column("row"))
    found = pa.table(dict(zip(OURS, (ids.column("uri"), ids.column("sample_id")), strict=True)))
    for name in manifest.column_names:
        if name not in OURS:
            found = found.append_column(name, manifest.column(name))
    return found
