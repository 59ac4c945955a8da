"""Files for memory mapping: a bounded folder of objects fetched from S3, and what is known of checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from models.errors import CorruptData, Unavailable
from storage.objects import PARTIAL, ObjectStore

T = TypeVar("T")

SIDECAR = "verified"
SIDECAR_BYTES = (
    16_000_000  # 250,000 checks; beyond that the older half is forgotten, and those files are read once more
)
LINE_BYTES = 65
# A file system's clock ticks every few milliseconds: a file changed twice within a tick looks the same. What was
# written this long ago is past that (git's index has the same rule).
SETTLED_NS = 2_000_000_000
ABANDONED_SECONDS = 3_600
ATTEMPTS = 5


@dataclass(frozen=True)
class Cache:
    """A folder that several processes share. It holds up to `limit` bytes; what was used least recently goes first."""

    folder: Path
    limit: int
    _known: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def use(self, store: ObjectStore, key: str, sha256: str, opened: Callable[[Path], T]) -> T:
        """What `opened` makes of a local file with the object's bytes, such as a memory map of it.

        Objects of a directory are used where they are; objects of S3 are fetched, whole or not at all. Bytes are
        checked once a file, not once a use. A file evicted by another process before it was opened is fetched again;
        one that is mapped stays readable. Raises CorruptData, NotFound, Unavailable.
        """
        for attempt in range(ATTEMPTS):
            path = store.local_path(key, self.folder)
            ours = path.parent == self.folder.absolute()
            try:
                fresh = self._check(path, sha256, ours=ours)
                found = opened(path)
                if ours:
                    _touch(path)
            except FileNotFoundError:
                continue
            except CorruptData:
                if not ours or attempt:
                    raise
                path.unlink(missing_ok=True)  # a key that was written anew since it was fetched
                continue
            if ours and fresh:
                self._evict(but=path)
            return found
        raise Unavailable(
            f"'{store.uri(key)}' was evicted from '{self.folder}' {ATTEMPTS} times before it could be opened; "
            "raise DIPNET_CACHE_BYTES"
        )

    def _check(self, path: Path, sha256: str, *, ours: bool) -> bool:
        """Whether the file had to be read to know that its bytes are right. Raises CorruptData."""
        state = path.stat()
        # Not the time of the last change of the inode: that moves when the file is touched.
        facts = f"{path}|{state.st_ino}|{state.st_size}|{state.st_mtime_ns}|{sha256}"
        line = hashlib.sha256(facts.encode()).hexdigest()
        if line in self._known or line in self._recall():
            return False
        with path.open("rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != sha256:
                raise CorruptData(f"'{path}' is not what was written (checksum differs)")
        if ours or time.time_ns() - state.st_mtime_ns > SETTLED_NS:
            self._remember(line)
        return True

    def _recall(self) -> set[str]:
        """What this process or another has verified."""
        if not self._known:
            with contextlib.suppress(OSError):
                self._known.update((self.folder / SIDECAR).read_text().split())
            self._known.add("")  # read
        return self._known

    def _remember(self, line: str) -> None:
        """A cache that cannot be written to forgets, nothing else."""
        self._known.add(line)
        path = self.folder / SIDECAR
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as handle:  # one write at the end of a file is not torn by another
                handle.write(f"{line}\n".encode())
                size = handle.tell()
            if size > SIDECAR_BYTES:
                kept = path.read_bytes()[size // LINE_BYTES // 2 * LINE_BYTES :]
                partial = path.with_name(f"{PARTIAL}{secrets.token_hex(6)}-{SIDECAR}")
                partial.write_bytes(kept)
                partial.replace(path)

    def _evict(self, *, but: Path) -> None:
        """Make the folder as small as it should be. Other processes may be doing the same."""
        held: list[tuple[int, int, str]] = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                state = entry.stat()
                if not entry.is_file() or entry.name == SIDECAR:
                    continue
                if entry.name.startswith(PARTIAL):
                    if time.time() - state.st_mtime > ABANDONED_SECONDS:  # left by a kill
                        Path(entry.path).unlink(missing_ok=True)
                    continue
                held.append((state.st_atime_ns, state.st_size, entry.path))
        total = sum(size for _, size, _ in held)
        for _, size, path in sorted(held):
            if total <= self.limit:
                break
            if Path(path) != but:
                Path(path).unlink(missing_ok=True)
                total -= size


def _touch(path: Path) -> None:
    """Say that the file was used now; file systems mounted with noatime do not by themselves."""
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
