"""rounds and watermarks

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "scoredshard",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("campaign_id", sa.Integer(), nullable=False),
        sa.Column("embedded_shard_id", sa.Integer(), nullable=False),
        sa.Column("watermark_key", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name=op.f("fk_scoredshard_campaign_id")),
        sa.ForeignKeyConstraint(
            ["embedded_shard_id"], ["embeddedshard.id"], name=op.f("fk_scoredshard_embedded_shard_id")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["campaignrun.id"], name=op.f("fk_scoredshard_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scoredshard")),
        sa.UniqueConstraint(
            "campaign_id",
            "embedded_shard_id",
            "watermark_key",
            name=op.f("uq_scoredshard_campaign_id_embedded_shard_id_watermark_key"),
        ),
    )
    with op.batch_alter_table("scoredshard", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_scoredshard_campaign_id"), ["campaign_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_scoredshard_run_id"), ["run_id"], unique=False)

    with op.batch_alter_table("campaign", schema=None) as batch_op:
        batch_op.add_column(sa.Column("plan", sa.JSON(), nullable=False, server_default="{}"))
        batch_op.add_column(
            sa.Column(
                "state",
                sa.Enum("active", "stopped", name="campaignstate", native_enum=False, length=20),
                nullable=False,
                server_default="active",
            )
        )
        batch_op.add_column(sa.Column("stopped_because", sa.String(), nullable=False, server_default=""))

    with op.batch_alter_table("campaignrun", schema=None) as batch_op:
        batch_op.add_column(sa.Column("plan_key", sa.String(length=64), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("series", sa.Integer(), nullable=False, server_default="1"))
        batch_op.add_column(sa.Column("round", sa.Integer(), nullable=False, server_default="1"))
        batch_op.add_column(sa.Column("shards_key", sa.String(length=64), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("last_shard", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("condition", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("scorer_key", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("found", sa.JSON(), nullable=False, server_default="{}"))

    op.execute("UPDATE campaignrun SET plan_key = key")  # runs from before: each a series of one round
    with op.batch_alter_table("campaignrun", schema=None) as batch_op:
        batch_op.create_unique_constraint(
            batch_op.f("uq_campaignrun_plan_key_series_round"), ["plan_key", "series", "round"]
        )

    with op.batch_alter_table("candidate", schema=None) as batch_op:
        batch_op.add_column(sa.Column("prototype", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Undo."""
    with op.batch_alter_table("candidate", schema=None) as batch_op:
        batch_op.drop_column("prototype")

    with op.batch_alter_table("campaignrun", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("uq_campaignrun_plan_key_series_round"), type_="unique")
        batch_op.drop_column("found")
        batch_op.drop_column("scorer_key")
        batch_op.drop_column("condition")
        batch_op.drop_column("last_shard")
        batch_op.drop_column("shards_key")
        batch_op.drop_column("round")
        batch_op.drop_column("series")
        batch_op.drop_column("plan_key")

    with op.batch_alter_table("campaign", schema=None) as batch_op:
        batch_op.drop_column("stopped_because")
        batch_op.drop_column("state")
        batch_op.drop_column("plan")

    with op.batch_alter_table("scoredshard", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_scoredshard_run_id"))
        batch_op.drop_index(batch_op.f("ix_scoredshard_campaign_id"))

    op.drop_table("scoredshard")
