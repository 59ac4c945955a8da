"""first tables

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "corpus",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("prefix", sa.String(), nullable=False),
        sa.Column(
            "split",
            sa.Enum("train", "development", "holdout", name="split", native_enum=False, length=20),
            nullable=True,
        ),
        sa.Column("label_column", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_corpus")),
        sa.UniqueConstraint("name", name=op.f("uq_corpus_name")),
    )
    op.create_table(
        "datasetversion",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=True),
        sa.Column("listing_key", sa.String(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("class_names", sa.JSON(), nullable=False),
        sa.Column("adds_batches", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["parent_id"], ["datasetversion.id"], name=op.f("fk_datasetversion_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasetversion")),
        sa.UniqueConstraint("content_hash", name=op.f("uq_datasetversion_content_hash")),
    )
    op.create_table(
        "encoderspec",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("dim", sa.Integer(), nullable=False),
        sa.Column("weights_sha256", sa.String(length=64), nullable=False),
        sa.Column("preprocessing", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_encoderspec")),
        sa.UniqueConstraint("key", name=op.f("uq_encoderspec_key")),
    )
    op.create_table(
        "issue",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("class_name", sa.String(length=200), nullable=False),
        sa.Column("slice_where", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "triage",
                "collecting",
                "labelling",
                "retraining",
                "resolved",
                "ignored",
                name="issuestate",
                native_enum=False,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_issue")),
        sa.UniqueConstraint("name", name=op.f("uq_issue_name")),
    )
    op.create_table(
        "campaign",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("issue_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["issue_id"], ["issue.id"], name=op.f("fk_campaign_issue_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_campaign")),
        sa.UniqueConstraint("name", name=op.f("uq_campaign_name")),
    )
    with op.batch_alter_table("campaign", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_campaign_issue_id"), ["issue_id"], unique=False)

    op.create_table(
        "embeddingset",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("corpus_id", sa.Integer(), nullable=False),
        sa.Column("encoder_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["corpus_id"], ["corpus.id"], name=op.f("fk_embeddingset_corpus_id")),
        sa.ForeignKeyConstraint(["encoder_id"], ["encoderspec.id"], name=op.f("fk_embeddingset_encoder_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_embeddingset")),
        sa.UniqueConstraint("corpus_id", "encoder_id", name=op.f("uq_embeddingset_corpus_id_encoder_id")),
    )
    with op.batch_alter_table("embeddingset", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_embeddingset_corpus_id"), ["corpus_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_embeddingset_encoder_id"), ["encoder_id"], unique=False)

    op.create_table(
        "scenario",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("issue_id", sa.Integer(), nullable=True),
        sa.Column("listing_key", sa.String(), nullable=False),
        sa.Column("listing_sha256", sa.String(length=64), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["issue_id"], ["issue.id"], name=op.f("fk_scenario_issue_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scenario")),
        sa.UniqueConstraint("name", name=op.f("uq_scenario_name")),
    )
    op.create_table(
        "shard",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("corpus_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("manifest_key", sa.String(), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["corpus_id"], ["corpus.id"], name=op.f("fk_shard_corpus_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shard")),
        sa.UniqueConstraint("corpus_id", "key", name=op.f("uq_shard_corpus_id_key")),
        sa.UniqueConstraint("corpus_id", "number", name=op.f("uq_shard_corpus_id_number")),
    )
    with op.batch_alter_table("shard", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_shard_corpus_id"), ["corpus_id"], unique=False)

    op.create_table(
        "trainingrun",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("dataset_id", sa.Integer(), nullable=False),
        sa.Column("encoder_id", sa.Integer(), nullable=False),
        sa.Column("trainer", sa.String(length=40), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasetversion.id"], name=op.f("fk_trainingrun_dataset_id")),
        sa.ForeignKeyConstraint(["encoder_id"], ["encoderspec.id"], name=op.f("fk_trainingrun_encoder_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trainingrun")),
        sa.UniqueConstraint("key", name=op.f("uq_trainingrun_key")),
    )
    with op.batch_alter_table("trainingrun", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_trainingrun_dataset_id"), ["dataset_id"], unique=False)

    op.create_table(
        "embeddedshard",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("embedding_set_id", sa.Integer(), nullable=False),
        sa.Column("shard_id", sa.Integer(), nullable=False),
        sa.Column("read_key", sa.String(), nullable=False),
        sa.Column("vectors_key", sa.String(), nullable=False),
        sa.Column("ids_key", sa.String(), nullable=False),
        sa.Column("vectors_sha256", sa.String(length=64), nullable=False),
        sa.Column("ids_sha256", sa.String(length=64), nullable=False),
        sa.Column("readable", sa.Integer(), nullable=False),
        sa.Column("quarantined", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["embedding_set_id"], ["embeddingset.id"], name=op.f("fk_embeddedshard_embedding_set_id")
        ),
        sa.ForeignKeyConstraint(["shard_id"], ["shard.id"], name=op.f("fk_embeddedshard_shard_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_embeddedshard")),
        sa.UniqueConstraint("embedding_set_id", "shard_id", name=op.f("uq_embeddedshard_embedding_set_id_shard_id")),
    )
    with op.batch_alter_table("embeddedshard", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_embeddedshard_embedding_set_id"), ["embedding_set_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_embeddedshard_shard_id"), ["shard_id"], unique=False)

    op.create_table(
        "modelversion",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("training_run_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("weights_key", sa.String(), nullable=False),
        sa.Column("weights_sha256", sa.String(length=64), nullable=False),
        sa.Column("class_names", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["training_run_id"], ["trainingrun.id"], name=op.f("fk_modelversion_training_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_modelversion")),
        sa.UniqueConstraint("training_run_id", name=op.f("uq_modelversion_training_run_id")),
    )
    op.create_table(
        "sample",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("uri", sa.String(), nullable=False),
        sa.Column("shard_id", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["shard_id"], ["shard.id"], name=op.f("fk_sample_shard_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sample")),
    )
    with op.batch_alter_table("sample", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_sample_shard_id"), ["shard_id"], unique=False)

    op.create_table(
        "campaignrun",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("campaign_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("encoder_id", sa.Integer(), nullable=False),
        sa.Column("issue_version", sa.Integer(), nullable=False),
        sa.Column("corpora", sa.JSON(), nullable=False),
        sa.Column("policy", sa.JSON(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=True),
        sa.Column(
            "state",
            sa.Enum("planned", "mined", "sent", "labelled", name="runstate", native_enum=False, length=20),
            nullable=False,
        ),
        sa.Column("excluded", sa.JSON(), nullable=False),
        sa.Column("scanned", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name=op.f("fk_campaignrun_campaign_id")),
        sa.ForeignKeyConstraint(["encoder_id"], ["encoderspec.id"], name=op.f("fk_campaignrun_encoder_id")),
        sa.ForeignKeyConstraint(["model_id"], ["modelversion.id"], name=op.f("fk_campaignrun_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_campaignrun")),
        sa.UniqueConstraint("key", name=op.f("uq_campaignrun_key")),
    )
    with op.batch_alter_table("campaignrun", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_campaignrun_campaign_id"), ["campaign_id"], unique=False)

    op.create_table(
        "comparison",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("before_id", sa.Integer(), nullable=False),
        sa.Column("after_id", sa.Integer(), nullable=False),
        sa.Column("scenario_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["after_id"], ["modelversion.id"], name=op.f("fk_comparison_after_id")),
        sa.ForeignKeyConstraint(["before_id"], ["modelversion.id"], name=op.f("fk_comparison_before_id")),
        sa.ForeignKeyConstraint(["scenario_id"], ["scenario.id"], name=op.f("fk_comparison_scenario_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparison")),
        sa.UniqueConstraint(
            "before_id", "after_id", "scenario_id", name=op.f("uq_comparison_before_id_after_id_scenario_id")
        ),
    )
    with op.batch_alter_table("comparison", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_comparison_after_id"), ["after_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_comparison_before_id"), ["before_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_comparison_scenario_id"), ["scenario_id"], unique=False)

    op.create_table(
        "exemplar",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("issue_id", sa.Integer(), nullable=False),
        sa.Column("sample_id", sa.String(length=64), nullable=False),
        sa.Column("positive", sa.Boolean(), nullable=False),
        sa.Column("added_in_version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["issue_id"], ["issue.id"], name=op.f("fk_exemplar_issue_id")),
        sa.ForeignKeyConstraint(["sample_id"], ["sample.id"], name=op.f("fk_exemplar_sample_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exemplar")),
        sa.UniqueConstraint("issue_id", "sample_id", name=op.f("uq_exemplar_issue_id_sample_id")),
    )
    with op.batch_alter_table("exemplar", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_exemplar_issue_id"), ["issue_id"], unique=False)

    op.create_table(
        "inferenceset",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("scenario_id", sa.Integer(), nullable=False),
        sa.Column("predictions_key", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["modelversion.id"], name=op.f("fk_inferenceset_model_id")),
        sa.ForeignKeyConstraint(["scenario_id"], ["scenario.id"], name=op.f("fk_inferenceset_scenario_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inferenceset")),
        sa.UniqueConstraint("model_id", "scenario_id", name=op.f("uq_inferenceset_model_id_scenario_id")),
    )
    with op.batch_alter_table("inferenceset", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_inferenceset_model_id"), ["model_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_inferenceset_scenario_id"), ["scenario_id"], unique=False)

    op.create_table(
        "candidate",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("sample_id", sa.String(length=64), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("score_version", sa.String(length=40), nullable=False),
        sa.Column("nearest_exemplar", sa.String(length=64), nullable=False),
        sa.Column("similarity", sa.Float(), nullable=False),
        sa.Column("near_duplicates", sa.Integer(), nullable=False),
        sa.Column(
            "arm", sa.Enum("exploit", "boundary", "random", name="arm", native_enum=False, length=20), nullable=False
        ),
        sa.Column("predicted_class", sa.String(length=200), nullable=False),
        sa.Column("predicted_probability", sa.Float(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "unsorted",
                "accepted",
                "discarded",
                "sent",
                "labelled",
                "skipped",
                name="candidatestate",
                native_enum=False,
                length=20,
            ),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["run_id"], ["campaignrun.id"], name=op.f("fk_candidate_run_id")),
        sa.ForeignKeyConstraint(["sample_id"], ["sample.id"], name=op.f("fk_candidate_sample_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_candidate")),
        sa.UniqueConstraint("run_id", "sample_id", name=op.f("uq_candidate_run_id_sample_id")),
    )
    with op.batch_alter_table("candidate", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_candidate_run_id"), ["run_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_candidate_sample_id"), ["sample_id"], unique=False)

    op.create_table(
        "evaluation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("inference_id", sa.Integer(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["inference_id"], ["inferenceset.id"], name=op.f("fk_evaluation_inference_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluation")),
        sa.UniqueConstraint("inference_id", name=op.f("uq_evaluation_inference_id")),
    )
    op.create_table(
        "gate",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("issue_id", sa.Integer(), nullable=False),
        sa.Column("slice_comparison_id", sa.Integer(), nullable=False),
        sa.Column("overall_comparison_id", sa.Integer(), nullable=False),
        sa.Column(
            "verdict",
            sa.Enum("pass", "fail", "inconclusive", name="verdict", native_enum=False, length=20),
            nullable=False,
        ),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["issue_id"], ["issue.id"], name=op.f("fk_gate_issue_id")),
        sa.ForeignKeyConstraint(
            ["overall_comparison_id"], ["comparison.id"], name=op.f("fk_gate_overall_comparison_id")
        ),
        sa.ForeignKeyConstraint(["slice_comparison_id"], ["comparison.id"], name=op.f("fk_gate_slice_comparison_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gate")),
        sa.UniqueConstraint(
            "issue_id",
            "slice_comparison_id",
            "overall_comparison_id",
            name=op.f("uq_gate_issue_id_slice_comparison_id_overall_comparison_id"),
        ),
    )
    with op.batch_alter_table("gate", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_gate_issue_id"), ["issue_id"], unique=False)

    op.create_table(
        "labelbatch",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("labeler", sa.String(length=40), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("class_names", sa.JSON(), nullable=False),
        sa.Column("complete", sa.Boolean(), nullable=False),
        sa.Column("watermark", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["campaignrun.id"], name=op.f("fk_labelbatch_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labelbatch")),
        sa.UniqueConstraint("run_id", name=op.f("uq_labelbatch_run_id")),
    )
    op.create_table(
        "metricdelta",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("comparison_id", sa.Integer(), nullable=False),
        sa.Column("class_name", sa.String(length=200), nullable=False),
        sa.Column("metric", sa.String(length=40), nullable=False),
        sa.Column("before", sa.Float(), nullable=False),
        sa.Column("after", sa.Float(), nullable=False),
        sa.Column("low", sa.Float(), nullable=False),
        sa.Column("high", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["comparison_id"], ["comparison.id"], name=op.f("fk_metricdelta_comparison_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metricdelta")),
        sa.UniqueConstraint(
            "comparison_id", "class_name", "metric", name=op.f("uq_metricdelta_comparison_id_class_name_metric")
        ),
    )
    with op.batch_alter_table("metricdelta", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_metricdelta_comparison_id"), ["comparison_id"], unique=False)

    op.create_table(
        "labelrequest",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("batch_id", sa.Integer(), nullable=False),
        sa.Column("candidate_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("external_id", sa.String(length=100), nullable=False),
        sa.Column(
            "state",
            sa.Enum("pending", "labelled", "skipped", "empty", name="requeststate", native_enum=False, length=20),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["batch_id"], ["labelbatch.id"], name=op.f("fk_labelrequest_batch_id")),
        sa.ForeignKeyConstraint(["candidate_id"], ["candidate.id"], name=op.f("fk_labelrequest_candidate_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labelrequest")),
        sa.UniqueConstraint("candidate_id", name=op.f("uq_labelrequest_candidate_id")),
        sa.UniqueConstraint("key", name=op.f("uq_labelrequest_key")),
    )
    with op.batch_alter_table("labelrequest", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_labelrequest_batch_id"), ["batch_id"], unique=False)

    op.create_table(
        "label",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sample_id", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.Integer(), nullable=True),
        sa.Column(
            "state",
            sa.Enum("pending", "labelled", "skipped", "empty", name="requeststate", native_enum=False, length=20),
            nullable=False,
        ),
        sa.Column("class_name", sa.String(length=200), nullable=False),
        sa.Column("source", sa.String(length=100), nullable=False),
        sa.Column("external_id", sa.String(length=200), nullable=False),
        sa.Column("annotator", sa.String(length=200), nullable=False),
        sa.Column("lead_seconds", sa.Float(), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["labelrequest.id"], name=op.f("fk_label_request_id")),
        sa.ForeignKeyConstraint(["sample_id"], ["sample.id"], name=op.f("fk_label_sample_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_label")),
        sa.UniqueConstraint(
            "source", "external_id", "answered_at", name=op.f("uq_label_source_external_id_answered_at")
        ),
    )
    with op.batch_alter_table("label", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_label_request_id"), ["request_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_label_sample_id"), ["sample_id"], unique=False)


def downgrade() -> None:
    """Undo."""
    with op.batch_alter_table("label", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_label_sample_id"))
        batch_op.drop_index(batch_op.f("ix_label_request_id"))

    op.drop_table("label")
    with op.batch_alter_table("labelrequest", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_labelrequest_batch_id"))

    op.drop_table("labelrequest")
    with op.batch_alter_table("metricdelta", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_metricdelta_comparison_id"))

    op.drop_table("metricdelta")
    op.drop_table("labelbatch")
    with op.batch_alter_table("gate", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_gate_issue_id"))

    op.drop_table("gate")
    op.drop_table("evaluation")
    with op.batch_alter_table("candidate", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_candidate_sample_id"))
        batch_op.drop_index(batch_op.f("ix_candidate_run_id"))

    op.drop_table("candidate")
    with op.batch_alter_table("inferenceset", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_inferenceset_scenario_id"))
        batch_op.drop_index(batch_op.f("ix_inferenceset_model_id"))

    op.drop_table("inferenceset")
    with op.batch_alter_table("exemplar", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_exemplar_issue_id"))

    op.drop_table("exemplar")
    with op.batch_alter_table("comparison", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_comparison_scenario_id"))
        batch_op.drop_index(batch_op.f("ix_comparison_before_id"))
        batch_op.drop_index(batch_op.f("ix_comparison_after_id"))

    op.drop_table("comparison")
    with op.batch_alter_table("campaignrun", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_campaignrun_campaign_id"))

    op.drop_table("campaignrun")
    with op.batch_alter_table("sample", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_sample_shard_id"))

    op.drop_table("sample")
    op.drop_table("modelversion")
    with op.batch_alter_table("embeddedshard", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_embeddedshard_shard_id"))
        batch_op.drop_index(batch_op.f("ix_embeddedshard_embedding_set_id"))

    op.drop_table("embeddedshard")
    with op.batch_alter_table("trainingrun", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_trainingrun_dataset_id"))

    op.drop_table("trainingrun")
    with op.batch_alter_table("shard", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_shard_corpus_id"))

    op.drop_table("shard")
    op.drop_table("scenario")
    with op.batch_alter_table("embeddingset", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_embeddingset_encoder_id"))
        batch_op.drop_index(batch_op.f("ix_embeddingset_corpus_id"))

    op.drop_table("embeddingset")
    with op.batch_alter_table("campaign", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_campaign_issue_id"))

    op.drop_table("campaign")
    op.drop_table("issue")
    op.drop_table("encoderspec")
    op.drop_table("datasetversion")
    op.drop_table("corpus")
