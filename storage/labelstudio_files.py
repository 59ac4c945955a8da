"""Images that Label Studio itself serves: the folders that they lie in are registered with a project, no others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from models.errors import Unavailable
from storage.labelstudio_connection import Connection, one_line
from storage.media import LOCAL_FILES, LocalFiles, Media


def serve_files(server: Connection, media: Media, project: str, links: Sequence[str]) -> None:
    """Register the folders of local files with the project, and make sure that the first file is shown.

    Raises Unavailable when Label Studio does not serve them; does nothing where other links are used.
    """
    local = [link.removeprefix(LOCAL_FILES) for link in links if link.startswith(LOCAL_FILES)]
    root = media.root if isinstance(media, LocalFiles) else None
    if root is None or not local:
        return
    from label_studio_sdk.core.api_error import ApiError

    number = int(project)
    held = {one.path for one in server.read(lambda client: client.import_storage.local.list(project=number))}
    with server.plainly() as client:
        for folder in sorted({str(root / unquote(link).partition("/")[0]) for link in local} - held):
            try:
                # The filter matches nothing: a click on Sync adds no tasks of its own.
                client.import_storage.local.create(
                    project=number, title="dipnet", path=folder, use_blob_urls=True, regex_filter="(?!)"
                )
            except ApiError as error:
                if error.status_code != 400:
                    raise
                raise _not_served(server, root, one_line((error.body or {}).get("validation_errors"))) from None
    status = server.status_of(LOCAL_FILES + local[0])
    if status != 200:
        raise _not_served(server, root, f"HTTP {status} for {LOCAL_FILES}{local[0]}")


def way_of(server: Connection, media: Media) -> str:
    """How images become visible, in words. Raises Unavailable where Label Studio was to serve files and does not."""
    if not isinstance(media, LocalFiles):
        return "signed links to the receiver"
    if media.root is None:
        return "web addresses alone: set DIPNET_RECEIVER_URL or DIPNET_LABEL_STUDIO_FILES_ROOT for files and S3"
    # A file that is not there is answered otherwise where nothing is served.
    if server.status_of(f"{LOCAL_FILES}dipnet-doctor") == 403:
        raise _not_served(server, media.root, "HTTP 403: it serves none")
    return f"files below {media.root}, served by Label Studio"


def _not_served(server: Connection, root: Path, why: str) -> Unavailable:
    return Unavailable(
        f"Label Studio at {server.url} does not serve the images as local files ({why}); start it with "
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
        f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, or unset DIPNET_LABEL_STUDIO_FILES_ROOT"
    )
