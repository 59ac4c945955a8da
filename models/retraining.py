"""What a person decides about training, and about what a trained model must show."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from models.plans import Name, Plan


class SplitPolicy(Plan):
    """Which of a campaign's answers are held back from training, so that an issue has a holdout of its own.

    Related images go the same way: a group's split follows from its hash alone, in every dataset version. What was held
    back once stays so, whatever the shares of later plans are.
    """

    development: float = Field(0.0, ge=0.0, lt=1.0, description="Share of the groups held back as development data")
    holdout: float = Field(0.0, ge=0.0, lt=1.0, description="Share of the groups held back as holdout")
    group_by: str = Field(
        "near-duplicates",
        description="What belongs together: near-duplicates, or a metadata column such as video; empty: nothing",
    )
    near_duplicate_cosine: float = Field(
        0.9995, gt=0.0, le=1.0, description="Two images at least this similar are near-duplicates"
    )
    may_shrink: bool = Field(
        False, description="Let evaluation samples go that an earlier dataset version had; otherwise that is refused"
    )

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.development + self.holdout >= 1:
            raise ValueError("development and holdout leave nothing to train on; lower them")
        return self


class HeadOptions(Plan):
    """A small classifier on frozen embeddings: seconds, and the same bits every time."""

    kind: Literal["logistic", "mlp"] = Field("logistic", description="logistic regression, or one hidden layer")
    regularisation: float = Field(10.0, gt=0.0, description="Inverse strength of the L2 penalty (scikit-learn's C)")
    hidden: int = Field(256, ge=1, le=8_192, description="Units of the hidden layer (mlp)")
    balance: Literal["none", "class-weights"] = Field("none", description="Whether rare classes weigh more")
    bootstrap: bool = Field(
        False, description="Fit on a resample of the training rows, drawn by the seed within each class"
    )


class FinetuneOptions(Plan):
    """A torchvision network on pixels."""

    backbone: str = Field("resnet18", description="Name of a torchvision classifier, such as resnet50 or vit_b_16")
    weights: str = Field(
        "none", description="none: from scratch; torchvision: its default weights, downloaded; or a file of weights"
    )
    image_size: int = Field(64, ge=16, le=1_024, description="Side that images are brought to, in pixels")
    epochs: int = Field(20, ge=1, le=10_000, description="Passes over the training data at most")
    batch_size: int = Field(64, ge=2, le=65_536, description="Images that one step sees")
    learning_rate: float = Field(0.001, gt=0.0, le=10.0, description="Highest learning rate (AdamW, one cycle)")
    weight_decay: float = Field(0.01, ge=0.0, le=1.0, description="Weight decay (AdamW)")
    balance: Literal["none", "class-weights", "sampling"] = Field(
        "none", description="class-weights: rare classes weigh more; sampling: they are drawn more often"
    )
    augmentation: Literal["none", "light", "strong"] = Field("light", description="How training images are varied")
    patience: int = Field(
        5, ge=0, le=1_000, description="Stop after so many epochs without a better development loss; 0: never"
    )
    minutes: float = Field(0.0, ge=0.0, description="Stop after so long, at the end of an epoch; 0: no limit")


class ExternalOptions(Plan):
    """A training of the team's own. It gets an exported dataset version and leaves predictions."""

    command: list[str] = Field(
        default_factory=list,
        description="Program and arguments; {dataset}, {predictions} and {seed} stand for a folder, a file and a number",
    )
    function: str = Field(
        "", description="Instead of a command: MODULE:FUNCTION, called with dataset, predictions and seed"
    )
    minutes: float = Field(240.0, gt=0.0, description="Time limit; then the training and its children are stopped")


class TrainerPlan(Plan):
    """Which trainer, and how."""

    name: Literal["head", "finetune", "external"] = Field(
        "head",
        description="head: on frozen embeddings, seconds; finetune: a torchvision network; external: the team's own",
    )
    head: HeadOptions = Field(default_factory=HeadOptions, description="For head")
    finetune: FinetuneOptions = Field(default_factory=FinetuneOptions, description="For finetune")
    external: ExternalOptions = Field(default_factory=ExternalOptions, description="For external")

    @model_validator(mode="after")
    def _says_what_to_run(self) -> Self:
        if self.name == "external" and bool(self.external.command) == bool(self.external.function):
            raise ValueError("an external trainer needs a command or a function, and not both")
        return self


class PredictionsPlan(Plan):
    """Take a model's predictions from a file, where the model itself is elsewhere."""

    file: str = Field(min_length=1, description="Parquet, CSV or JSONL: a row a sample")
    model: Name = Field(description="Name of the model; each file of other content is a new version of it")
    scenarios: list[str] = Field(min_length=1, description="Scenarios whose samples it answers for")
    normalise: bool = Field(False, description="Divide probabilities that do not add up to 1 by their sum")
    allow_extra: bool = Field(False, description="Leave out rows about other samples than the scenarios'")


class GatePolicy(Plan):
    """What a change must show to pass, and what it must not lose."""

    overall_margin: float = Field(0.01, ge=0.0, le=1.0, description="Loss of overall accuracy that counts as none")
    class_margin: float = Field(0.02, ge=0.0, le=1.0, description="Loss of a class's recall that counts as none")
    scenario_margin: float = Field(
        0.02, ge=0.0, le=1.0, description="Loss of accuracy on a scenario that counts as none"
    )
    error_rate: float = Field(
        0.05, gt=0.0, lt=0.5, description="False discovery rate over classes and scenarios that are said to be worse"
    )
    promote: bool = Field(True, description="Whether a model that passes becomes champion")


class RetrainPlan(Plan):
    """Freeze a dataset version, fit a classifier, evaluate it, compare it and judge it."""

    model: Name = Field("model", description="Name of the model; each fit of other inputs is a new version of it")
    corpora: list[str] = Field(default_factory=list, description="Labelled train corpora; empty: all there are")
    campaigns: list[str] = Field(default_factory=list, description="Campaigns whose labels are added; *: all")
    splits: SplitPolicy = Field(default_factory=SplitPolicy, description="What is held back of campaigns' labels")
    trainer: TrainerPlan = Field(default_factory=TrainerPlan, description="How to fit")
    scenarios: list[str] = Field(default_factory=list, description="Scenarios to evaluate on; empty: all there are")
    compare_with: str = Field("", description="Model version to compare with; empty: the champion; none: do not")
    issue: str = Field("", description="Issue that the gate is about; *: each whose campaigns are added; empty: none")
    gate: GatePolicy = Field(default_factory=GatePolicy, description="What it must show")
    encoder: str = Field("", description="Encoder whose vectors are the features; empty: the default of the settings")
    seed: int = Field(0, ge=0, description="Seed of the fit and of the resampling")
    resamples: int = Field(2_000, ge=200, le=100_000, description="Resamples behind each interval")


class UpliftPlan(Plan):
    """What a campaign gave beyond its control arm, at equal budget."""

    campaign: str = Field(min_length=1, description="Campaign")
    control: str = Field(min_length=1, description="Campaign of the random strategy over the same pool")
    corpora: list[str] = Field(default_factory=list, description="Labelled train corpora; empty: all there are")
    scenario: str = Field("", description="Scenario to measure on; empty: the issue's own")
    metric: Literal["f1", "recall", "precision", "accuracy", "macro_f1"] = Field(
        "f1", description="f1, recall and precision are those of the issue's class"
    )
    trainer: TrainerPlan = Field(default_factory=TrainerPlan, description="How to fit")
    seeds: int = Field(5, ge=2, le=100, description="Training seeds of each arm")
    encoder: str = Field("", description="Encoder whose vectors are the features; empty: the default of the settings")
    seed: int = Field(0, ge=0, description="First seed")
