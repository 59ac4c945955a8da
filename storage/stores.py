"""The one place where the parts of a running dipnet are chosen: database, object store, labeller."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from sqlmodel import Session

from models.elements import place_of
from models.errors import BadSettings, Collided, CorruptData
from models.settings import Settings, load_settings
from storage import locks
from storage.cache import Cache
from storage.database import open_engine, transaction
from storage.labelers import Labeler, OracleLabeler
from storage.media import Signer, media_of, webhook_path
from storage.objects import ObjectStore, open_store, require_at_most
from storage.remembered import cache_folder

T = TypeVar("T")

COLLISIONS = 5  # that are put up with before somebody has to look


@dataclass(frozen=True)
class Stores:
    """Everything that a step may touch. `db` commits when the `open_stores` block ends well."""

    settings: Settings
    db: Session
    objects: ObjectStore
    _buckets: dict[str, ObjectStore] = field(default_factory=dict, init=False, repr=False, compare=False)

    def images(self, prefix: str) -> ObjectStore:
        """The store that a corpus's images lie in."""
        return open_store(prefix, endpoint=self.settings.s3_endpoint, region=self.settings.s3_region)

    def read_uri(self, uri: str, *, most: int | None = None) -> bytes:
        """The bytes of one image, wherever it lies: an object, or a member of a tar; of a box, those of its whole image.

        Raises BadInput, before reading, when there are more than `most`.
        """
        place = place_of(uri)
        store, key = self._holding(place.object_uri)
        if not place.member:
            return store.read(key, most=most)
        require_at_most(uri, place.length, most)
        found = store.read_part(key, place.offset, place.offset + place.length) if place.length else None
        data = found.data if found else b""
        if len(data) != place.length:
            raise CorruptData(
                f"'{place.object_uri}' ends before its member '{place.member}' does; it has changed since it was listed: "
                "put back what it was"
            )
        return data

    def _holding(self, object_uri: str) -> tuple[ObjectStore, str]:
        """A store that holds an object, and its key there. A bucket has one, since each store makes a client of its own."""
        if not object_uri.startswith("s3://"):
            folder, slash, name = object_uri.rpartition("/")
            return self.images(folder + slash or "."), name
        bucket, _, key = object_uri.removeprefix("s3://").partition("/")
        return self._buckets.setdefault(bucket, self._buckets.get(bucket) or self.images(f"s3://{bucket}")), key

    @cached_property
    def cache(self) -> Cache:
        """Where objects of S3 are kept for memory mapping; of a directory, only which checksums were right."""
        folder = cache_folder() if self.settings.root.startswith("s3://") else Path(self.settings.root) / ".cache"
        return Cache(folder, self.settings.cache_bytes)

    @cached_property
    def labeler(self) -> Labeler:
        """Who labels, by the settings. Raises BadSettings when something is missing."""
        if self.settings.labeler == "oracle":
            if self.settings.oracle_truth is None:
                raise BadSettings(
                    "the oracle needs its answers; set DIPNET_ORACLE_TRUTH to a CSV of sample_id,class_name"
                )
            return OracleLabeler.from_csv(self.settings.oracle_truth)
        if not self.settings.label_studio_url or not self.settings.label_studio_token.get_secret_value():
            raise BadSettings(
                "Label Studio is not configured; set DIPNET_LABEL_STUDIO_URL and DIPNET_LABEL_STUDIO_TOKEN, "
                "or DIPNET_LABELER=oracle to simulate"
            )
        from storage.labelstudio import LabelStudioLabeler

        return LabelStudioLabeler(
            url=self.settings.label_studio_url,
            token=self.settings.label_studio_token,
            media=media_of(self.settings, now=datetime.now(UTC)),
            hook=self._hook if self.settings.receiver_url else None,
        )

    def _hook(self, project_id: int) -> tuple[str, str]:
        """Where a project of ours wants to be told of answers, and the token that goes along."""
        address = f"{self.settings.receiver_url}{webhook_path(project_id)}"
        return address, Signer(self.settings.receiver_secret).webhook_token()


@contextmanager
def open_stores(settings: Settings | None = None) -> Iterator[Stores]:
    """The stores that the settings name; one transaction, committed when the block ends well."""
    chosen = settings or load_settings()
    objects = open_store(chosen.root, endpoint=chosen.s3_endpoint, region=chosen.s3_region)
    engine = open_engine(chosen.resolved_database_url)
    try:
        with transaction(engine) as db:
            yield Stores(settings=chosen, db=db, objects=objects)
    finally:
        engine.dispose()


def insist(work: Callable[[], T]) -> T:
    """Do it again when another dipnet wrote the same rows first: the second time they are found. It has to bear that."""
    for _ in range(COLLISIONS):
        with suppress(Collided):
            return work()
        time.sleep(random.uniform(0.01, 0.1))  # noqa: S311  so that two do not meet again
    return work()


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Hold the lock of that name, in the settings' database, without a transaction. Raises Unavailable after a long wait."""
    engine = open_engine(load_settings().resolved_database_url)
    try:
        with locks.alone(engine, name):
            yield
    finally:
        engine.dispose()
