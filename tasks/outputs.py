"""Files and folders that a person asks for by path."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import BadInput, Unavailable


def require_place(path: Path) -> None:
    """Raises BadInput when no file can be written there: said before the work, which may take an hour."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise BadInput(f"'{path}' cannot be written: there is no folder '{folder}'; make it, or name another")
    if path.is_dir():
        raise BadInput(f"'{path}' is a folder; name a file in it")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise BadInput(f"'{path}' must not be written by you; correct the rights, or name another")


@contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends well: whole or not there. Raises Unavailable.

    Where something of that name is in the way, an empty folder gives way, and with `replace` one that holds something.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        old = Path(f"{partial}-old")
        try:
            yield partial
            partial.chmod(0o755)
            if replace and target.is_dir():
                target.rename(old)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise Unavailable(
            f"'{target}' cannot be written ({error.strerror}); free some room, correct the rights, or name another folder"
        ) from None
