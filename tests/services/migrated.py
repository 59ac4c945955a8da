"""A Label Studio's data directory that is migrated already: to migrate one takes a minute."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from storage.labelstudio_server import RELEASE, LabelStudioServer


def migrated_label_studio(on_wait: Callable[[str], None] = lambda _: None) -> Path:
    """The folder to copy, kept in the temporary folder; it appears there whole or not at all. Raises Unavailable."""
    kept = Path(tempfile.gettempdir()) / f"dipnet-label-studio-{RELEASE}-{os.getuid()}"
    if not kept.is_dir():
        fresh = Path(tempfile.mkdtemp(prefix="dipnet-label-studio-"))
        try:
            with LabelStudioServer(fresh, on_wait=on_wait):
                pass
        except BaseException:
            shutil.rmtree(fresh)
            raise
        with contextlib.suppress(OSError):  # somebody else was first
            fresh.rename(kept)
    return kept
