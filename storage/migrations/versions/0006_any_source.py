"""what a listing no longer has, what encoded a shard, checksums of what was read, and which image a box is of

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TEXT, DIGEST, INTEGER, FLOAT = sa.String(), sa.String(length=64), sa.Integer(), sa.Float()
COLUMNS: dict[str, dict[str, tuple[sa.types.TypeEngine[Any], str]]] = {
    "corpus": {"vanished": (INTEGER, "0"), "vanished_key": (TEXT, ""), "vanished_sha256": (DIGEST, "")},
    "sample": {"image_id": (DIGEST, "")},
    "embeddingset": {"backend": (TEXT, "")},
    "embeddedshard": {"read_sha256": (DIGEST, ""), "backend": (TEXT, ""), "seconds": (FLOAT, "0")},
}


def upgrade() -> None:
    """Apply. What was read before has no checksum and is not checked; who encoded it is not known."""
    for table, columns in COLUMNS.items():
        with op.batch_alter_table(table, schema=None) as batch_op:
            for name, (kind, default) in columns.items():
                batch_op.add_column(sa.Column(name, kind, nullable=False, server_default=default))


def downgrade() -> None:
    """Undo."""
    for table, columns in COLUMNS.items():
        with op.batch_alter_table(table, schema=None) as batch_op:
            for name in columns:
                batch_op.drop_column(name)
