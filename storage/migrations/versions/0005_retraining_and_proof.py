"""versions of models and scenarios, splits of datasets, gates about anything, promotions and uplift

Comparisons from before are deleted with their differences: their intervals are of a plain bootstrap, which says zero
about a handful of samples, so no gate may look at them; they are made anew when they are asked for. Nothing refers to
them once gates name models, and gates keep the verdicts that they gave. Scenarios of issues and the one of all holdout
data may hold development data, and cannot grow: they are kept as NAME-before-0.4, and fresh ones take their names.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

OLD = "-before-0.4"
KIND = sa.Enum("corpus", "slice", "issue", "regression", name="scenariokind", native_enum=False, length=20)


def upgrade() -> None:
    """Apply. Models of one name become its versions; what was trained on until now is the train split."""
    _change_datasets()
    _change_models()
    _change_scenarios()
    _change_comparisons()
    _change_gates()
    _delete_comparisons()
    _add_tables()


def _change_datasets() -> None:
    _add("datasetversion", listing_sha256=_text(64), learnt_hash=_text(64), splits=_json("{}"), excluded=_json("{}"))
    _add("datasetversion", corpora=_json("[]"))
    version = sa.table("datasetversion", sa.column("id"), sa.column("samples"), sa.column("splits", sa.JSON))
    for number, samples in op.get_bind().execute(sa.select(version.c.id, version.c.samples)).all():
        op.execute(version.update().where(version.c.id == number).values(splits={"train": samples}))
    op.execute("UPDATE datasetversion SET learnt_hash = content_hash")


def _change_models() -> None:
    _add(
        "trainingrun", environment=_json("{}"), history=_json("[]"), log_key=_text(),
        seconds=(sa.Float(), "0"),
    )  # fmt: skip
    with op.batch_alter_table("trainingrun", schema=None) as batch_op:
        batch_op.alter_column("dataset_id", existing_type=sa.Integer(), nullable=True)
        batch_op.alter_column("encoder_id", existing_type=sa.Integer(), nullable=True)
    _add("modelversion", version=(sa.Integer(), "1"))
    _number("modelversion")
    with op.batch_alter_table("modelversion", schema=None) as batch_op:
        batch_op.create_unique_constraint(batch_op.f("uq_modelversion_name_version"), ["name", "version"])
    _add("inferenceset", predictions_sha256=_text(64), source=(sa.String(length=40), "computed"),
         unreadable=_json("{}"))  # fmt: skip


def _change_scenarios() -> None:
    _add("scenario", version=(sa.Integer(), "1"), kind=(KIND, "slice"), corpora=_json("[]"), where=_text())
    _add("scenario", group_by=_text(200))
    op.execute("UPDATE scenario SET kind = 'issue' WHERE issue_id IS NOT NULL")
    with op.batch_alter_table("scenario", schema=None) as batch_op:
        batch_op.add_column(sa.Column("parent_id", sa.Integer(), nullable=True))
        batch_op.create_foreign_key(batch_op.f("fk_scenario_parent_id"), "scenario", ["parent_id"], ["id"])
        batch_op.drop_constraint("uq_scenario_name", type_="unique")
        batch_op.create_unique_constraint(batch_op.f("uq_scenario_name_version"), ["name", "version"])
    _rename_scenarios()


def _rename_scenarios() -> None:
    """Make room under the names that are fixed."""
    scenario = sa.table("scenario", sa.column("id"), sa.column("name"), sa.column("issue_id"))
    rows = op.get_bind().execute(sa.select(scenario.c.id, scenario.c.name, scenario.c.issue_id)).all()
    names = {name for _, name, _ in rows}
    for number, name, issue_id in rows:
        if (issue_id is not None or name == "all-holdout") and OLD not in name:
            wanted = f"{name[:150]}{OLD}"
            if wanted in names:  # upgraded once already, and back
                wanted = f"{wanted}-{number}"
            op.execute(scenario.update().where(scenario.c.id == number).values(name=wanted))


def _change_comparisons() -> None:
    whole = {name: (sa.Integer(), "0") for name in ("samples", "groups", "resamples", "seed")}
    _add("comparison", **whole, changes_key=_text(), summary=_json("{}"))
    with op.batch_alter_table("comparison", schema=None) as batch_op:
        batch_op.drop_constraint("uq_comparison_before_id_after_id_scenario_id", type_="unique")
        batch_op.create_unique_constraint(
            batch_op.f("uq_comparison_before_id_after_id_scenario_id_resamples_seed"),
            ["before_id", "after_id", "scenario_id", "resamples", "seed"],
        )
    _add("metricdelta", p=(sa.Float(), "1"), q=(sa.Float(), "1"), detectable=(sa.Float(), "0"))


def _delete_comparisons() -> None:
    """Once no gate refers to them."""
    op.execute("DELETE FROM metricdelta")
    op.execute("DELETE FROM comparison")


def _change_gates() -> None:
    """A gate named its two comparisons; now it names both models, and its key is a hash of all that it looked at."""
    _add("gate", key=_text(64), policy=_json("{}"), findings=_json("[]"), settled=(sa.Boolean(), "1"))
    op.execute("UPDATE gate SET key = 'before-0005-' || id")
    with op.batch_alter_table("gate", schema=None) as batch_op:
        for name in ("before_id", "after_id", "samples_needed"):
            batch_op.add_column(sa.Column(name, sa.Integer(), nullable=True))
    for name in ("before_id", "after_id"):
        op.execute(
            f"UPDATE gate SET {name} = (SELECT c.{name} FROM comparison c WHERE c.id = gate.slice_comparison_id)"  # noqa: S608
        )
    with op.batch_alter_table("gate", schema=None) as batch_op:
        batch_op.alter_column("issue_id", existing_type=sa.Integer(), nullable=True)
        batch_op.create_foreign_key(batch_op.f("fk_gate_before_id"), "modelversion", ["before_id"], ["id"])
        batch_op.create_foreign_key(batch_op.f("fk_gate_after_id"), "modelversion", ["after_id"], ["id"])
        batch_op.create_index(batch_op.f("ix_gate_after_id"), ["after_id"])
        batch_op.drop_constraint("uq_gate_issue_id_slice_comparison_id_overall_comparison_id", type_="unique")
        batch_op.create_unique_constraint(batch_op.f("uq_gate_key"), ["key"])
        batch_op.drop_constraint("fk_gate_slice_comparison_id", type_="foreignkey")
        batch_op.drop_constraint("fk_gate_overall_comparison_id", type_="foreignkey")
        batch_op.drop_column("slice_comparison_id")
        batch_op.drop_column("overall_comparison_id")


def _add_tables() -> None:
    op.create_table(
        "promotion",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("gate_id", sa.Integer(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("undone_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["modelversion.id"], name=op.f("fk_promotion_model_id")),
        sa.ForeignKeyConstraint(["gate_id"], ["gate.id"], name=op.f("fk_promotion_gate_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_promotion")),
    )
    op.create_index(op.f("ix_promotion_model_id"), "promotion", ["model_id"])
    op.create_table(
        "uplift",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("campaign_id", sa.Integer(), nullable=False),
        sa.Column("control_id", sa.Integer(), nullable=False),
        sa.Column("scenario_id", sa.Integer(), nullable=False),
        sa.Column("class_name", sa.String(length=200), nullable=False),
        sa.Column("metric", sa.String(length=40), nullable=False),
        sa.Column("budget", sa.Integer(), nullable=False),
        sa.Column("seeds", sa.JSON(), nullable=False),
        sa.Column("by_seed", sa.JSON(), nullable=False),
        sa.Column("mean", sa.Float(), nullable=False),
        sa.Column("low", sa.Float(), nullable=False),
        sa.Column("high", sa.Float(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name=op.f("fk_uplift_campaign_id")),
        sa.ForeignKeyConstraint(["control_id"], ["campaign.id"], name=op.f("fk_uplift_control_id")),
        sa.ForeignKeyConstraint(["scenario_id"], ["scenario.id"], name=op.f("fk_uplift_scenario_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uplift")),
        sa.UniqueConstraint("key", name=op.f("uq_uplift_key")),
    )
    op.create_index(op.f("ix_uplift_campaign_id"), "uplift", ["campaign_id"])


def _add(table: str, **columns: tuple[Any, str]) -> None:
    with op.batch_alter_table(table, schema=None) as batch_op:
        for name, (kind, default) in columns.items():
            batch_op.add_column(sa.Column(name, kind, nullable=False, server_default=default))


def _text(length: int | None = None) -> tuple[Any, str]:
    return sa.String(length=length) if length else sa.String(), ""


def _json(empty: str) -> tuple[Any, str]:
    return sa.JSON(), empty


def _number(table: str) -> None:
    """Rows of one name are its versions 1, 2, … in the order in which they were made."""
    op.execute(
        f"UPDATE {table} SET version = (SELECT count(*) FROM {table} e WHERE e.name = {table}.name AND e.id <= {table}.id)"  # noqa: S608
    )


def downgrade() -> None:
    """Undo. Gates are no longer known: they name no comparisons. Old scenarios get their names where these are free."""
    op.drop_table("uplift")
    op.drop_table("promotion")
    op.execute("DELETE FROM gate")
    with op.batch_alter_table("gate", schema=None) as batch_op:
        batch_op.add_column(sa.Column("slice_comparison_id", sa.Integer(), nullable=False))
        batch_op.add_column(sa.Column("overall_comparison_id", sa.Integer(), nullable=False))
        batch_op.drop_constraint("uq_gate_key", type_="unique")
        batch_op.drop_constraint("fk_gate_before_id", type_="foreignkey")
        batch_op.drop_constraint("fk_gate_after_id", type_="foreignkey")
        batch_op.drop_index("ix_gate_after_id")
        batch_op.create_foreign_key("fk_gate_slice_comparison_id", "comparison", ["slice_comparison_id"], ["id"])
        batch_op.create_foreign_key("fk_gate_overall_comparison_id", "comparison", ["overall_comparison_id"], ["id"])
        batch_op.create_unique_constraint(
            "uq_gate_issue_id_slice_comparison_id_overall_comparison_id",
            ["issue_id", "slice_comparison_id", "overall_comparison_id"],
        )
        batch_op.alter_column("issue_id", existing_type=sa.Integer(), nullable=False)
        for name in ("key", "policy", "findings", "before_id", "after_id", "samples_needed", "settled"):
            batch_op.drop_column(name)
    _drop("metricdelta", "p", "q", "detectable")
    op.execute("DELETE FROM metricdelta")  # of several comparisons of one pair only one could stay
    op.execute("DELETE FROM comparison")
    with op.batch_alter_table("comparison", schema=None) as batch_op:
        batch_op.drop_constraint("uq_comparison_before_id_after_id_scenario_id_resamples_seed", type_="unique")
        batch_op.create_unique_constraint(
            "uq_comparison_before_id_after_id_scenario_id", ["before_id", "after_id", "scenario_id"]
        )
    _drop("comparison", "samples", "groups", "resamples", "seed", "changes_key", "summary")
    op.execute("UPDATE scenario SET name = name || '@' || version WHERE version > 1")  # a name had one version
    with op.batch_alter_table("scenario", schema=None) as batch_op:
        batch_op.drop_constraint("uq_scenario_name_version", type_="unique")
        batch_op.drop_constraint("fk_scenario_parent_id", type_="foreignkey")
        batch_op.create_unique_constraint("uq_scenario_name", ["name"])
    op.execute(
        f"UPDATE scenario SET name = substr(name, 1, length(name) - {len(OLD)}) WHERE name LIKE '%{OLD}' "  # noqa: S608
        f"AND NOT EXISTS (SELECT 1 FROM scenario e WHERE e.name || '{OLD}' = scenario.name)"
    )
    _drop("scenario", "version", "kind", "corpora", "where", "parent_id", "group_by")
    _drop("inferenceset", "predictions_sha256", "source", "unreadable")
    with op.batch_alter_table("modelversion", schema=None) as batch_op:
        batch_op.drop_constraint("uq_modelversion_name_version", type_="unique")
    _drop("modelversion", "version")
    _drop("trainingrun", "environment", "history", "log_key", "seconds")
    with op.batch_alter_table("trainingrun", schema=None) as batch_op:
        batch_op.alter_column("dataset_id", existing_type=sa.Integer(), nullable=False)
        batch_op.alter_column("encoder_id", existing_type=sa.Integer(), nullable=False)
    _drop("datasetversion", "listing_sha256", "learnt_hash", "splits", "excluded", "corpora")


def _drop(table: str, *columns: str) -> None:
    with op.batch_alter_table(table, schema=None) as batch_op:
        for name in columns:
            batch_op.drop_column(name)
