"""What was found out about this machine, in the user's cache: measurements, and files that take long to make."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIGEST_BYTES = 32


def cache_folder() -> Path:
    """The user's cache of dipnet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dipnet"


@dataclass(frozen=True)
class Remembered:
    """A folder of its own for each machine: `about` is whatever the findings depend on.

    Files are put in place whole, so that any number of processes may write; one that is damaged is forgotten, and so
    is everything where the folder cannot be written.
    """

    about: tuple[str, ...]

    def facts(self, name: str) -> dict[str, Any] | None:
        """What was found before; None when it was not, or cannot be read."""
        try:
            found = json.loads((self._folder / f"{name}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def keep_facts(self, name: str, facts: dict[str, Any]) -> None:
        """Remember what was found, beside what it is about, for people who look."""
        self._write(f"{name}.json", json.dumps({"about": self.about, **facts}, indent=2).encode())

    def file(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The bytes kept under a name, checked; made and kept when they are not there."""
        with contextlib.suppress(OSError):
            held = (self._folder / name).read_bytes()
            if hashlib.sha256(held[DIGEST_BYTES:]).digest() == held[:DIGEST_BYTES]:
                return held[DIGEST_BYTES:]
        made = make()
        self._write(name, hashlib.sha256(made).digest() + made)
        return made

    @property
    def _folder(self) -> Path:
        return cache_folder() / "machines" / hashlib.sha256("|".join(self.about).encode()).hexdigest()[:16]

    def _write(self, name: str, data: bytes) -> None:
        partial = self._folder / f".{secrets.token_hex(8)}.partial"
        with contextlib.suppress(OSError):
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                partial.write_bytes(data)
                partial.replace(self._folder / name)
            finally:
                partial.unlink(missing_ok=True)
