"""projects, golden items, resolved labels, withdrawn and rejected answers

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BATCH = sa.Enum("open", "complete", "quarantined", "rejected", name="batchstate", native_enum=False, length=20)


def upgrade() -> None:
    """Apply. A campaign's batches shared a project already; what a request's newest label says is its resolved label."""
    _add_projects()
    _change_batches()
    _change_requests()
    _change_labels()
    for table in ("label", "labelrequest"):
        _fill_class_names(table)


def _change_labels() -> None:
    """Versions of one answer are counted, and each knows the item that it answers, as the labeller calls it."""
    with op.batch_alter_table("label", schema=None) as batch_op:
        batch_op.add_column(sa.Column("class_names", sa.JSON(), nullable=False, server_default="[]"))
        batch_op.add_column(sa.Column("rejected", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("item_id", sa.String(length=100), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("origin", sa.String(length=40), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("version", sa.Integer(), nullable=False, server_default="0"))
    op.execute(
        """UPDATE label SET item_id = (SELECT r.external_id FROM labelrequest r WHERE r.id = label.request_id)
        WHERE request_id IS NOT NULL"""
    )
    op.execute(
        """UPDATE label SET version = (SELECT count(*) FROM label e WHERE e.source = label.source
        AND e.external_id = label.external_id AND e.sample_id = label.sample_id AND e.id < label.id)"""
    )
    with op.batch_alter_table("label", schema=None) as batch_op:
        batch_op.drop_constraint("uq_label_source_external_id_answered_at", type_="unique")
        batch_op.create_unique_constraint(
            batch_op.f("uq_label_source_external_id_sample_id_version"),
            ["source", "external_id", "sample_id", "version"],
        )


def _fill_class_names(table: str) -> None:
    """A label of one class names that class in its list, too."""
    rows = sa.table(table, sa.column("class_name", sa.String), sa.column("class_names", sa.JSON))
    names = [name for (name,) in op.get_bind().execute(sa.select(rows.c.class_name).distinct()) if name]
    for name in names:
        op.execute(rows.update().where(rows.c.class_name == name).values(class_names=[name]))


def _add_projects() -> None:
    op.create_table(
        "labelproject",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("campaign_id", sa.Integer(), nullable=False),
        sa.Column("labeler", sa.String(length=40), nullable=False),
        sa.Column("external_id", sa.String(length=100), nullable=False),
        sa.Column("class_names", sa.JSON(), nullable=False),
        sa.Column("multiple", sa.Boolean(), nullable=False),
        sa.Column("opinions", sa.Integer(), nullable=False),
        sa.Column("watermark", sa.DateTime(timezone=True), nullable=True),
        sa.Column("swept_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("census", sa.JSON(), nullable=False),
        sa.Column("media_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name=op.f("fk_labelproject_campaign_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labelproject")),
        sa.UniqueConstraint("campaign_id", "labeler", name=op.f("uq_labelproject_campaign_id_labeler")),
    )
    with op.batch_alter_table("labelproject", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_labelproject_campaign_id"), ["campaign_id"], unique=False)
    op.execute(
        """INSERT INTO labelproject (campaign_id, labeler, external_id, class_names, multiple, opinions, census, created_at)
        SELECT r.campaign_id, b.labeler, b.project, b.class_names, false, 1, '{}', b.created_at
        FROM labelbatch b JOIN campaignrun r ON r.id = b.run_id
        WHERE b.project <> '' AND b.id IN (SELECT max(b2.id) FROM labelbatch b2 JOIN campaignrun r2 ON r2.id = b2.run_id
        WHERE b2.project <> '' GROUP BY r2.campaign_id, b2.labeler)"""
    )


def _change_batches() -> None:
    with op.batch_alter_table("labelbatch", schema=None) as batch_op:
        batch_op.add_column(sa.Column("project_id", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("policy", sa.JSON(), nullable=False, server_default="{}"))
        batch_op.add_column(sa.Column("state", BATCH, nullable=False, server_default="open"))
        batch_op.add_column(sa.Column("reason", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("released", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.add_column(sa.Column("announced", BATCH, nullable=False, server_default="open"))
    op.execute("UPDATE labelbatch SET state = 'complete', announced = 'complete' WHERE complete")
    op.execute(
        """UPDATE labelbatch SET project_id = (SELECT p.id FROM labelproject p JOIN campaignrun r
        ON r.campaign_id = p.campaign_id WHERE r.id = labelbatch.run_id AND p.labeler = labelbatch.labeler)
        WHERE project <> ''"""
    )
    with op.batch_alter_table("labelbatch", schema=None) as batch_op:
        batch_op.create_foreign_key(batch_op.f("fk_labelbatch_project_id"), "labelproject", ["project_id"], ["id"])
        batch_op.create_index(batch_op.f("ix_labelbatch_project_id"), ["project_id"], unique=False)
        for column in ("project", "class_names", "complete", "watermark"):
            batch_op.drop_column(column)


def _change_requests() -> None:
    with op.batch_alter_table("labelrequest", schema=None) as batch_op:
        batch_op.alter_column("candidate_id", existing_type=sa.Integer(), nullable=True)
        batch_op.add_column(sa.Column("sample_id", sa.String(length=64), nullable=True))
        for name, length in (("expected", 200), ("predicted_class", 200), ("class_name", 200)):
            batch_op.add_column(sa.Column(name, sa.String(length=length), nullable=False, server_default=""))
        for name in ("position", "opinions"):
            default = "1" if name == "opinions" else "0"
            batch_op.add_column(sa.Column(name, sa.Integer(), nullable=False, server_default=default))
        for name in ("predicted_probability", "confidence"):
            batch_op.add_column(sa.Column(name, sa.Float(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("class_names", sa.JSON(), nullable=False, server_default="[]"))
        batch_op.add_column(sa.Column("changed_at", sa.DateTime(timezone=True), nullable=True))
        for name in ("gone", "stale"):
            batch_op.add_column(sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false()))
    of_candidate = "(SELECT c.{} FROM candidate c WHERE c.id = labelrequest.candidate_id)"
    for column, source in (
        ("sample_id", "sample_id"),
        ("position", "rank"),
        ("predicted_class", "predicted_class"),
        ("predicted_probability", "predicted_probability"),
    ):
        op.execute(f"UPDATE labelrequest SET {column} = {of_candidate.format(source)}")  # noqa: S608  no input goes in
    newest = (
        "(SELECT l.class_name FROM label l WHERE l.request_id = labelrequest.id "
        "ORDER BY l.answered_at DESC, l.id DESC LIMIT 1)"
    )
    op.execute(f"UPDATE labelrequest SET class_name = {newest}, confidence = 1 WHERE state = 'labelled'")  # noqa: S608
    with op.batch_alter_table("labelrequest", schema=None) as batch_op:
        batch_op.alter_column("sample_id", existing_type=sa.String(length=64), nullable=False)
        batch_op.create_foreign_key(batch_op.f("fk_labelrequest_sample_id"), "sample", ["sample_id"], ["id"])
        batch_op.create_index(batch_op.f("ix_labelrequest_sample_id"), ["sample_id"], unique=False)


def downgrade() -> None:
    """Undo. Golden items, withdrawn and rejected answers, and batches of no project are not known there."""
    golden = "(SELECT id FROM labelrequest WHERE candidate_id IS NULL)"
    op.execute(f"DELETE FROM label WHERE rejected <> '' OR state = 'deleted' OR request_id IN {golden}")  # noqa: S608
    op.execute("DELETE FROM labelrequest WHERE candidate_id IS NULL")
    op.execute("UPDATE labelrequest SET state = 'skipped' WHERE state = 'deleted'")
    newest = "(SELECT max(id) FROM label GROUP BY source, external_id, answered_at)"
    op.execute(f"DELETE FROM label WHERE id NOT IN {newest}")  # noqa: S608  no input goes in
    with op.batch_alter_table("label", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("uq_label_source_external_id_sample_id_version"), type_="unique")
        for column in ("version", "origin", "item_id", "rejected", "class_names"):
            batch_op.drop_column(column)
        batch_op.create_unique_constraint(
            "uq_label_source_external_id_answered_at", ["source", "external_id", "answered_at"]
        )
    with op.batch_alter_table("labelrequest", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_labelrequest_sample_id"))
        batch_op.drop_constraint(batch_op.f("fk_labelrequest_sample_id"), type_="foreignkey")
        for column in (
            "changed_at", "stale", "gone", "class_names", "confidence", "predicted_probability", "opinions", "position",
            "class_name", "predicted_class", "expected", "sample_id",
        ):  # fmt: skip
            batch_op.drop_column(column)
        batch_op.alter_column("candidate_id", existing_type=sa.Integer(), nullable=False)
    _downgrade_batches()
    op.drop_table("labelproject")


def _downgrade_batches() -> None:
    with op.batch_alter_table("labelbatch", schema=None) as batch_op:
        batch_op.add_column(sa.Column("project", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("class_names", sa.JSON(), nullable=False, server_default="[]"))
        batch_op.add_column(sa.Column("complete", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.add_column(sa.Column("watermark", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE labelbatch SET complete = true WHERE state <> 'open'")
    for column, source in (("project", "external_id"), ("class_names", "class_names")):
        of_project = f"(SELECT p.{source} FROM labelproject p WHERE p.id = labelbatch.project_id)"  # noqa: S608
        op.execute(f"UPDATE labelbatch SET {column} = {of_project} WHERE project_id IS NOT NULL")  # noqa: S608
    with op.batch_alter_table("labelbatch", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_labelbatch_project_id"))
        batch_op.drop_constraint(batch_op.f("fk_labelbatch_project_id"), type_="foreignkey")
        for column in ("announced", "released", "reason", "state", "policy", "project_id"):
            batch_op.drop_column(column)
