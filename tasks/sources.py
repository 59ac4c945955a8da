"""Stand-in until the sources land."""

from __future__ import annotations

import pyarrow as pa

from models.corpus import Corpus
from models.elements import Place
from storage.stores import Stores


def places_of(stores: Stores, corpus: Corpus, manifest: pa.Table) -> tuple[list[Place], list[str]]:
    source = stores.images(corpus.prefix)
    return [Place(source.uri(key)) for key in manifest.column("key").to_pylist()], manifest.column("etag").to_pylist()
