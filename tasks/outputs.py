"""Files that a person asks for by path."""

from __future__ import annotations

import os
from pathlib import Path

from models.errors import BadInput


def require_place(path: Path) -> None:
    """Raises BadInput when no file can be written there: said before the work, which may take an hour."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise BadInput(f"'{path}' cannot be written: there is no folder '{folder}'; make it, or name another")
    if path.is_dir():
        raise BadInput(f"'{path}' is a folder; name a file in it")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise BadInput(f"'{path}' must not be written by you; correct the rights, or name another")
