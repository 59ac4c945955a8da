"""Bytes under keys: a directory or an S3 bucket behind one interface. An object is whole or absent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from models.errors import BadInput, CorruptData, NotFound, Unavailable

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

PARTIAL = ".partial-"
PIECE_BYTES = 8_000_000
GONE = (FileNotFoundError, NotADirectoryError, PermissionError)  # deleted since it was listed, or not ours to look into
CLIENTS = threading.Lock()  # threads that make clients of boto3's one session at once break each other


@dataclass(frozen=True)
class Listed:
    """What listing tells of an object, without reading it."""

    key: str
    etag: str
    bytes: int


@dataclass(frozen=True)
class Part:
    """Some bytes of an object, and what the same answer told of the whole."""

    data: bytes
    size: int
    etag: str


class ObjectStore(Protocol):
    """Objects under one prefix. Keys are relative, with forward slashes."""

    @property
    def prefix(self) -> str:
        """Directory or s3://bucket/prefix."""
        ...

    def read(self, key: str, *, most: int | None = None) -> bytes:
        """The object's bytes. Raises NotFound, Unavailable, or, before reading, BadInput for more bytes than `most`."""
        ...

    def read_part(self, key: str, start: int, stop: int) -> Part:
        """Bytes from `start` to `stop`, less where the object ends before. Raises NotFound, Unavailable."""
        ...

    def write(self, key: str, data: bytes) -> str:
        """Put an object in place whole, replacing what was there; return the SHA-256 of the bytes."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is an object with that key."""
        ...

    def list(self, under: str = "") -> Iterator[Listed]:
        """Objects under a sub-prefix, in the order of their keys."""
        ...

    def write_file(self, key: str, file: Path) -> None:
        """The same for the bytes of a file, which may be larger than memory."""
        ...

    def remove(self, key: str) -> None:
        """Delete an object, if it is there."""
        ...

    def local_path(self, key: str, cache: Path) -> Path:
        """A file with the object's bytes; objects of S3 are fetched into `cache` unless there. See storage.cache."""
        ...

    def uri(self, key: str) -> str:
        """Where the object is, for people and for labellers."""
        ...


def put_in_place(path: Path, pieces: Iterable[bytes]) -> None:
    """Make a file of these bytes, whole or not at all. Raises Unavailable."""
    partial = path.with_name(f"{PARTIAL}{secrets.token_hex(6)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as handle:
            handle.writelines(pieces)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
    except OSError as error:
        raise Unavailable(
            f"'{path}' cannot be written ({error.strerror}); free some room, or correct the rights"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def file_etag(about: os.stat_result) -> str:
    """Of a file: its size and when it was modified, in ns."""
    return f"{about.st_size:x}-{about.st_mtime_ns:x}"


def require_at_most(uri: str, size: int, most: int | None) -> None:
    """Raises BadInput for more bytes than may be read."""
    if most is not None and size > most:
        raise BadInput(f"'{uri}' has {size:,} bytes, and {most:,} are read at most; make it smaller")


def _leads_inside(link: os.DirEntry[str], folder: Path) -> bool:
    target = Path(os.path.realpath(link.path))
    return target.is_relative_to(folder) and target.is_file()


class DirectoryStore:
    """Objects as files of a directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(os.path.normpath(folder.absolute()))  # no key may lead through '..'

    @property
    def prefix(self) -> str:
        """The directory."""
        return str(self._folder)

    def _path(self, key: str) -> Path:
        path = Path(os.path.normpath(self._folder / key))
        if not path.is_relative_to(self._folder) or path == self._folder:
            raise BadInput(f"key '{key}' leads out of '{self._folder}'; use a relative key without '..'")
        return path

    def read(self, key: str, *, most: int | None = None) -> bytes:
        """The file's bytes."""
        with self._speaking_plainly(key), self._opened(key) as handle:
            require_at_most(self.uri(key), os.fstat(handle.fileno()).st_size, most)
            return handle.read()

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[BinaryIO]:
        """The regular file of that key; a pipe, which would have us wait for ever, is none."""
        with open(os.open(self._path(key), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as handle:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
                raise FileNotFoundError
            yield handle

    @contextlib.contextmanager
    def _speaking_plainly(self, key: str) -> Iterator[None]:
        """Turn the system's errors into ours."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"'{self.uri(key)}' does not exist; was it moved or deleted?") from None
        except OSError as error:
            raise Unavailable(f"'{self.uri(key)}' cannot be read: {error.strerror}") from None

    def read_part(self, key: str, start: int, stop: int) -> Part:
        """Some bytes of the file."""
        with self._speaking_plainly(key), self._opened(key) as handle:
            about = os.fstat(handle.fileno())
            there = max(0, min(stop, about.st_size) - start)  # memory is taken for these before a byte is read
            return Part(os.pread(handle.fileno(), there, start), about.st_size, file_etag(about))

    def write(self, key: str, data: bytes) -> str:
        """Write beside the target, flush to disk, then rename: a kill leaves the old file or the new one."""
        put_in_place(self._path(key), [data])
        return hashlib.sha256(data).hexdigest()

    def write_file(self, key: str, file: Path) -> None:
        """The same, some megabytes at a time."""
        with file.open("rb") as handle:
            put_in_place(self._path(key), iter(lambda: handle.read(PIECE_BYTES), b""))

    def exists(self, key: str) -> bool:
        """Whether the file is there."""
        return self._path(key).is_file()

    def list(self, under: str = "") -> Iterator[Listed]:
        """Regular files below, links followed only to files inside; an etag is size and modification time in ns."""
        start = self._path(under) if under else self._folder
        if not self._folder.is_dir():
            raise NotFound(f"folder '{self._folder}' does not exist; give the folder that holds the images")
        try:
            yield from sorted(self._below(str(start)), key=lambda item: item.key)
        except OSError as error:
            raise Unavailable(
                f"'{start}' cannot be listed: {error.strerror}; mend the disk or its connection"
            ) from None

    def _below(self, start: str) -> Iterator[Listed]:
        skip, inside, folders = len(str(self._folder).rstrip("/")) + 1, Path(os.path.realpath(self._folder)), [start]
        while folders:
            with (
                contextlib.suppress(*GONE),
                os.scandir(folders.pop()) as found,
            ):
                for entry in found:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif not entry.is_symlink() or _leads_inside(entry, inside):
                        with contextlib.suppress(*GONE):
                            about = entry.stat()
                            if stat.S_ISREG(about.st_mode):
                                yield Listed(entry.path[skip:], file_etag(about), about.st_size)

    def remove(self, key: str) -> None:
        """Delete the file."""
        with contextlib.suppress(NotADirectoryError):
            self._path(key).unlink(missing_ok=True)

    def local_path(self, key: str, cache: Path) -> Path:  # noqa: ARG002
        """The file itself."""
        path = self._path(key)
        if not path.is_file():
            raise NotFound(f"'{path}' does not exist; embed the corpus again with: dipnet embed CORPUS")
        return path

    def uri(self, key: str) -> str:
        """The absolute path."""
        return str(self._path(key))


class S3Store:
    """Objects of an S3 bucket under a prefix, through boto3."""

    def __init__(self, bucket: str, prefix: str, *, endpoint: str, region: str) -> None:
        self._bucket, self._prefix = bucket, prefix.strip("/")
        self._endpoint, self._region = endpoint, region

    @cached_property
    def _client(self) -> S3Client:
        import boto3
        from botocore.config import Config

        # Servers other than AWS do not all send the checksums that newer boto3 asks for.
        config = Config(
            retries={"max_attempts": 5, "mode": "standard"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        with CLIENTS:
            return boto3.client("s3", endpoint_url=self._endpoint or None, region_name=self._region, config=config)

    @property
    def prefix(self) -> str:
        """s3://bucket/prefix."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def _full(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    @contextlib.contextmanager
    def _speaking_plainly(self, key: str) -> Iterator[None]:
        """Turn botocore's errors into ours."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in ("NoSuchKey", "404", "NotFound"):
                raise NotFound(f"'{self.uri(key)}' does not exist; was it moved or deleted?") from None
            if code == "NoSuchBucket":
                raise NotFound(f"bucket '{self._bucket}' does not exist; make it, or correct the prefix") from None
            raise Unavailable(
                f"S3 refused '{self.uri(key)}' ({code}); check the credentials and their rights"
            ) from None
        except BotoCoreError as error:
            raise Unavailable(
                f"S3 does not answer for '{self.uri(key)}' ({type(error).__name__}); check the network, "
                "the credentials and DIPNET_S3_ENDPOINT"
            ) from None

    def read(self, key: str, *, most: int | None = None) -> bytes:
        """The object's bytes."""
        with self._speaking_plainly(key):
            found = self._client.get_object(Bucket=self._bucket, Key=self._full(key))
            with contextlib.closing(found["Body"]) as body:
                require_at_most(self.uri(key), found["ContentLength"], most)
                return body.read()

    def read_part(self, key: str, start: int, stop: int) -> Part:
        """Some bytes of the object; none where it ends before `start`."""
        from botocore.exceptions import ClientError

        with self._speaking_plainly(key):
            try:
                found = self._client.get_object(
                    Bucket=self._bucket, Key=self._full(key), Range=f"bytes={start}-{stop - 1}"
                )
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") not in ("InvalidRange", "416"):
                    raise
                about = self._client.head_object(Bucket=self._bucket, Key=self._full(key))
                return Part(b"", about["ContentLength"], about["ETag"].strip('"'))
            # Some servers answer with the whole object, at least when that is what the range amounts to.
            given = found.get("ContentRange", "")
            size = int(given.rpartition("/")[2]) if given else found["ContentLength"]
            with contextlib.closing(found["Body"]) as body:
                data = body.read() if given else body.read(stop)[start:]
            return Part(data, size, found["ETag"].strip('"'))

    def write(self, key: str, data: bytes) -> str:
        """A single PUT is atomic in S3: readers see the old object or the new one."""
        with self._speaking_plainly(key):
            self._client.put_object(Bucket=self._bucket, Key=self._full(key), Body=data)
        return hashlib.sha256(data).hexdigest()

    def write_file(self, key: str, file: Path) -> None:
        """In parts, put together when the last one is there."""
        with self._speaking_plainly(key):
            self._client.upload_file(str(file), self._bucket, self._full(key))

    def exists(self, key: str) -> bool:
        """Whether there is an object with that key."""
        try:
            with self._speaking_plainly(key):
                self._client.head_object(Bucket=self._bucket, Key=self._full(key))
        except NotFound:
            return False
        return True

    def list(self, under: str = "") -> Iterator[Listed]:
        """Objects below; S3 lists in the order of the keys."""
        with self._speaking_plainly(under):
            start = self._full(under) if under else self._prefix
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=f"{start}/" if start else ""
            )
            skip = len(self._prefix) + 1 if self._prefix else 0
            for page in pages:
                for item in page.get("Contents", ()):
                    yield Listed(item["Key"][skip:], item["ETag"].strip('"'), item["Size"])

    def remove(self, key: str) -> None:
        """S3 deletes what is not there without complaint."""
        with self._speaking_plainly(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._full(key))

    def local_path(self, key: str, cache: Path) -> Path:
        """Fetch into the cache, some megabytes at a time, unless it is there already."""
        path = cache.absolute() / hashlib.sha256(self.uri(key).encode()).hexdigest()
        if not path.exists():
            with self._speaking_plainly(key):
                body = self._client.get_object(Bucket=self._bucket, Key=self._full(key))["Body"]
                put_in_place(path, body.iter_chunks(PIECE_BYTES))
        return path

    def uri(self, key: str) -> str:
        """s3://bucket/prefix/key."""
        return f"s3://{self._bucket}/{self._full(key)}"


def open_store(prefix: str, *, endpoint: str = "", region: str = "us-east-1") -> ObjectStore:
    """The store for s3://bucket/prefix or a directory. Nothing is contacted or made yet."""
    if prefix.startswith("s3://"):
        bucket, _, path = prefix.removeprefix("s3://").partition("/")
        if not bucket:
            raise BadInput(f"'{prefix}' names no bucket; write s3://BUCKET/PREFIX")
        return S3Store(bucket, path, endpoint=endpoint, region=region)
    if "://" in prefix:
        raise BadInput(f"'{prefix}' is neither a directory nor s3://bucket/prefix; use one of these")
    return DirectoryStore(Path(prefix))


def verified(store: ObjectStore, key: str, sha256: str) -> bytes:
    """The object's bytes, when they are the bytes that were written. Raises CorruptData otherwise."""
    data = store.read(key)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptData(
            f"'{store.uri(key)}' is not what was written (checksum differs); restore it, or delete and rebuild it"
        )
    return data
