"""what a run was planned on: its budget, a standing campaign's shards and watermark key

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply. What was planned and not mined holds nothing and is planned anew; watermarks are of what was mined."""
    planned = "(SELECT id FROM campaignrun WHERE state = 'planned')"
    op.execute(f"DELETE FROM scoredshard WHERE run_id IN {planned}")  # noqa: S608  no input goes in
    op.execute("DELETE FROM campaignrun WHERE state = 'planned'")
    with op.batch_alter_table("campaignrun", schema=None) as batch_op:
        batch_op.add_column(sa.Column("budget", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("shards", sa.JSON(), nullable=False, server_default="[]"))
        batch_op.add_column(sa.Column("watermark_key", sa.String(length=64), nullable=False, server_default=""))


def downgrade() -> None:
    """Undo. An empty run is one whose labels are all there."""
    op.execute("UPDATE campaignrun SET state = 'labelled' WHERE state = 'empty'")
    with op.batch_alter_table("campaignrun", schema=None) as batch_op:
        batch_op.drop_column("watermark_key")
        batch_op.drop_column("shards")
        batch_op.drop_column("budget")
