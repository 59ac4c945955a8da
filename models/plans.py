"""What a person decides: frozen, checked, and the forms of the Prefect UI."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from models.errors import BadInput
from models.states import Split

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,98}$")]


class Plan(BaseModel):
    """What a person decides. Every field becomes a field of the form."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class IngestPlan(Plan):
    """List the images under a prefix into a corpus."""

    corpus: Name = Field(description="Name of the corpus: lower-case letters, digits, . _ -")
    prefix: str = Field(
        min_length=1,
        description="Folder or s3://bucket/prefix that the images, or tars of them, lie under; or one tar; or a list of "
        "images: CSV, Parquet or JSON lines with a column uri",
    )
    split: Literal["none", "train", "development", "holdout"] = Field(
        "none", description="What its labels may be used for; none for an unlabelled pool"
    )
    label_column: str = Field(
        "",
        description="Column of the metadata that holds the class, or 'folder' for a folder a class; empty: no labels",
    )
    metadata: str = Field(
        "",
        description="File about the images: CSV, Parquet or JSON lines with a column file_name, or COCO's JSON, whose "
        "column is category; empty: metadata.csv, .parquet or .jsonl beside them",
    )
    boxes: str = Field(
        "",
        description="File of boxes, which become the corpus's elements: COCO's JSON, or CSV, Parquet or JSON lines with "
        "file_name, x, y, width, height and whatever else is known of each; empty: elements are whole images",
    )

    @property
    def split_or_none(self) -> Split | None:
        """The split, or None for a pool."""
        return None if self.split == "none" else Split(self.split)


class IssuePlan(Plan):
    """Name a failure."""

    issue: Name = Field(description="Name of the issue: lower-case letters, digits, . _ -")
    class_name: str = Field(min_length=1, max_length=200, description="The class that the model gets wrong")
    where: str = Field("", description="SQL over metadata columns that delimits the issue's slice; empty: all of it")
    description: str = Field("", description="What goes wrong, in a sentence, for annotators")


class EmbedPlan(Plan):
    """Turn the images of corpora into vectors."""

    corpora: list[str] = Field(min_length=1, description="Names of corpora")
    encoder: str = Field(
        "", description="MODEL/PRETRAINED of open_clip or a checkpoint's folder; empty: the default of the settings"
    )
    batch_size: int = Field(
        0, ge=0, le=65_536, description="Images that the encoder sees at once; 0: what suits it here"
    )
    backend: str = Field(
        "", description="What encodes: auto, torch-fp32, torch-bf16, onnx-int8, …; empty: as before, or the settings'"
    )
    retry: bool = Field(False, description="Look again at images that were unreadable")
    runner: Literal["", "local", "ray"] = Field("", description="Where it runs; empty: as the settings say")


class VectorsPlan(Plan):
    """Take vectors that are there already: a folder of clip-retrieval's, or a file of vectors and one of ids."""

    corpus: str = Field(min_length=1, description="Name of the corpus that holds the images")
    folder: str = Field("", description="Folder with img_emb/img_emb_N.npy and metadata/metadata_N.parquet")
    vectors: str = Field("", description="Instead of a folder: one .npy file, a row an image")
    ids: str = Field("", description="What its rows are about: .csv, .parquet, or .txt with a line a row")
    encoder: str = Field("", description="What made the vectors; empty: what a folder that dipnet exported says")
    dim: int = Field(0, ge=0, le=65_536, description="Declare an encoder that cannot be loaded here: its dimension")
    weights_sha256: str = Field(
        "",
        pattern=r"^([0-9a-f]{64})?$",
        description="Of the declared encoder's weights; empty: its name stands for them",
    )
    preprocessing: str = Field("", max_length=10_000, description="Of the declared encoder, in words")

    @model_validator(mode="after")
    def _names_one_source(self) -> Self:
        if bool(self.folder) == bool(self.vectors) or bool(self.vectors) != bool(self.ids):
            raise ValueError("give a folder, or vectors with ids")
        if (self.weights_sha256 or self.preprocessing) and not self.dim:
            raise ValueError("weights_sha256 and preprocessing declare an encoder; give its dim too")
        return self


class SelectionPolicy(Plan):
    """How candidates are scored and chosen."""

    strategy: Literal["probe", "nearest", "text", "random"] = Field(
        "probe",
        description="probe: whitened LDA and PU-logistic probes of the exemplars; nearest: likeness to the nearest "
        "exemplar; text: a prompt in words; random: by chance, as a control",
    )
    budget: int = Field(
        200,
        ge=1,
        le=100_000,
        description="Label requests to send, over all rounds; standing: each time there are new shards",
    )
    rounds: int = Field(
        1, ge=1, le=50, description="Rounds to spend the budget in; each waits for the labels of the one before"
    )
    min_score: float = Field(
        0.0, ge=0.0, le=1.0, description="Least score of what is chosen for its score; 0.5 is half-way to an exemplar"
    )
    boundary_share: float = Field(
        0.1, ge=0.0, le=1.0, description="Share of each round drawn from just below the best, where labels teach most"
    )
    random_share: float = Field(
        0.1, ge=0.0, le=1.0, description="Share of each round drawn by chance, to estimate prevalence and misses"
    )
    text: str = Field("", max_length=500, description="What to look for in words (strategy text)")
    text_weight: float = Field(
        0.5, ge=0.0, le=1.0, description="Weight of the words beside the exemplars (strategy text); 1: words alone"
    )
    diversity: float = Field(
        0.1, ge=0.0, le=1.0, description="How much likeness to what is chosen already counts against a candidate (MMR)"
    )
    prototype_share: float = Field(
        0.0, ge=0.0, le=1.0, description="Share of the best dealt evenly among the exemplars that they are most like"
    )
    balance_classes: bool = Field(
        False, description="Deal the best evenly among the classes that the campaign's model predicts; needs a model"
    )
    near_duplicate_cosine: float = Field(
        0.995,
        gt=0.0,
        le=1.0,
        description="Two images at least this similar count as near-duplicates; 1 drops identical vectors only",
    )
    leak_cosine: float = Field(
        0.9995, gt=0.0, le=1.0, description="An image at least this similar to evaluation data is refused"
    )
    across_campaigns: bool = Field(
        True, description="Leave out what other campaigns have sent, and near-duplicates of it"
    )
    neighbours: int = Field(
        0, ge=0, le=100_000, description="From the second round on, score only so many neighbours of each hit; 0: all"
    )
    scan: Literal["exact", "index"] = Field(
        "exact",
        description="exact: score every image; index: candidates from `dipnet index`, for corpora of 50 million and more",
    )
    blind: Literal["refuse", "warn"] = Field(
        "refuse", description="What to do when the encoder cannot tell the exemplars from the background"
    )
    shrinkage: float = Field(0.1, ge=0.0, le=1.0, description="Shrinkage of the background covariance (probe)")
    seed: int = Field(0, ge=0, description="Seed of everything that is chance")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.boundary_share + self.random_share > 1:
            raise ValueError("boundary_share and random_share add up to more than 1; lower one of them")
        if self.rounds > self.budget:
            raise ValueError("rounds is above budget; each round needs at least one label request")
        if (self.strategy == "text") != bool(self.text.strip()):
            raise ValueError("text and strategy 'text' go together; give both or neither")
        return self


class PoolFilter(Plan):
    """Which elements of the corpora a campaign may choose."""

    where: str = Field("", description="SQL condition over metadata columns, such as: camera = 'roof' AND speed > 3")
    time_column: str = Field("", description="Metadata column with the time of an image (for since and until)")
    since: str = Field(
        "",
        description="Only images from this time on, such as 2026-11-01 or 2026-11-01T06:00+01:00; UTC without an offset",
    )
    until: str = Field("", description="Only images before this time")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name in ("since", "until"):
            value = getattr(self, name)
            if value and not self.time_column:
                raise ValueError(f"{name} needs time_column, the metadata column that holds the time")
            if value:
                try:
                    datetime.fromisoformat(value)
                except ValueError:
                    raise ValueError(
                        f"{name} '{value}' is no time; write it as 2026-11-01 or 2026-11-01T06:00"
                    ) from None
        return self

    @property
    def condition(self) -> str:
        """All of it as one SQL condition; empty when everything may be chosen. Raises BadInput for a where that ends early."""
        if not _closes(self.where):
            raise BadInput(
                f"where {self.where!r} cannot be used: its parentheses do not match, or it holds a comment; mend it"
            )
        parts = [f"({self.where})"] if self.where.strip() else []
        column = '"' + self.time_column.replace('"', '""') + '"'
        for value, operator in ((self.since, ">="), (self.until, "<")):
            if value:
                parts.append(f"TRY_CAST({column} AS TIMESTAMPTZ) {operator} TIMESTAMPTZ '{_in_utc(value)}'")
        return " AND ".join(parts)


def _closes(where: str) -> bool:
    """Whether text stays inside the parentheses around it: no `) OR (` that would let it out of a time window, no comment."""
    bare, depth = re.sub(r"'[^']*'|\"[^\"]*\"", "", where), 0
    for mark in re.findall(r"[()]", bare):
        depth += 1 if mark == "(" else -1
        if depth < 0:
            return False
    return depth == 0 and "--" not in bare and "/*" not in bare


def _in_utc(value: str) -> str:
    """An ISO time as UTC; without an offset it is UTC already."""
    time = datetime.fromisoformat(value)
    return (time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)).isoformat(" ")


class StopRule(Plan):
    """When a campaign that goes on by itself ends, and what a label costs."""

    min_yield: float = Field(
        0.0, ge=0.0, le=1.0, description="Stop when the last round's hits per label are surely below this; 0: never"
    )
    max_cost_per_hit: float = Field(
        0.0, ge=0.0, description="Stop when the next hit is projected to cost more money than this; 0: never"
    )
    max_labels: int = Field(0, ge=0, description="Stop when so many labels came back; 0: never")
    rate_per_hour: float = Field(0.0, ge=0.0, description="What an hour of labelling costs, in your currency")
    minutes_per_label: float = Field(
        0.5, gt=0.0, description="Minutes that a label takes, until lead times say it better"
    )


class LabelPolicy(Plan):
    """How a batch is labelled: the schema, how many look at an item, how they are checked, when it is enough."""

    accept: Literal["auto", "review"] = Field(
        "auto", description="auto: send what nobody discarded; review: send only what an engineer accepted"
    )
    choice: Literal["single", "multiple"] = Field("single", description="Whether an answer may name several classes")
    opinions: int = Field(1, ge=1, le=20, description="Annotators whose answers an item needs")
    most_opinions: int = Field(
        0, ge=0, le=20, description="Ask another annotator where answers differ, up to so many in all; 0: do not"
    )
    resolve: Literal["majority", "dawid-skene"] = Field(
        "majority",
        description="majority: most answers win, and Dawid-Skene decides ties; dawid-skene: annotators are weighed by "
        "how they err",
    )
    enough: float = Field(
        1.0, gt=0.0, le=1.0, description="A batch is complete when so large a share of its items has its answers"
    )
    golden_corpus: str = Field("", description="Labelled corpus whose images are mixed in as items of known answer")
    golden_share: float = Field(
        0.05, ge=0.0, le=0.5, description="Golden items as a share of the others; golden_least at least"
    )
    golden_accuracy: float = Field(
        0.8, ge=0.0, le=1.0, description="A batch whose golden items are answered worse than this is quarantined"
    )
    golden_least: int = Field(5, ge=1, description="Golden answers below which nothing is concluded")
    suspects: Literal["warn", "refuse", "ignore"] = Field(
        "warn",
        description="When a campaign is opened and labels of its exemplars look wrong: say so, refuse, or do not look",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.most_opinions and self.most_opinions < self.opinions:
            raise ValueError("most_opinions is below opinions; raise it, or leave it at 0")
        return self


class CampaignPlan(Plan):
    """Mine corpora for more of an issue, choose within a budget, and route the choice to be labelled."""

    campaign: Name = Field(description="Name of the campaign; it is made when it is new")
    issue: str = Field(min_length=1, description="Name of an issue that has exemplars")
    corpora: list[str] = Field(min_length=1, description="Names of embedded corpora to search")
    policy: SelectionPolicy = Field(default_factory=SelectionPolicy, description="How to score and choose")
    pool: PoolFilter = Field(default_factory=PoolFilter, description="Which elements may be chosen; empty: all")
    stop: StopRule = Field(default_factory=StopRule, description="When to stop, and what a label costs")
    labelling: LabelPolicy = Field(default_factory=LabelPolicy, description="How the choice is labelled")
    standing: bool = Field(
        False, description="Stand: whenever it is run again, score only what is new and spend a budget on that"
    )
    encoder: str = Field("", description="Encoder whose vectors are searched; empty: the default of the settings")
    class_names: list[str] = Field(
        default_factory=list, description="Answers that annotators choose from; empty: every class labelled so far"
    )
    model: str = Field("", description="Model version whose predictions go along as pre-annotations; empty: none")
    route: bool = Field(True, description="Send the choice to the labeller; otherwise stop after mining")

    @property
    def sends_by_itself(self) -> bool:
        """Whether what is mined is sent without an engineer's looking at it."""
        return self.route and self.labelling.accept == "auto"

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if self.policy.balance_classes and not self.model:
            raise ValueError(
                "balance_classes needs a model, whose predicted classes are balanced; name one with --model"
            )
        return self


class ContinuePlan(Plan):
    """Take up campaigns that can go on: a round whose labels are in, or a standing campaign with new shards."""

    campaigns: list[str] = Field(default_factory=list, description="Only these campaigns; empty: all active ones")


class SyncPlan(Plan):
    """Fetch answers for every open batch."""

    campaigns: list[str] = Field(default_factory=list, description="Only these campaigns; empty: all")


class DiscoverPlan(Plan):
    """Find a slice of failures on development data and propose it as an issue."""

    model: str = Field(min_length=1, description="Model version that fails")
    scenario: str = Field(min_length=1, description="Scenario on development data; never a holdout")
    encoder: str = Field("", description="Encoder whose vectors are clustered; empty: the default of the settings")
    exemplars: int = Field(10, ge=1, le=1_000, description="Failures to keep as exemplars")
    seed: int = Field(0, ge=0, description="Seed of the clustering")


class ReportPlan(Plan):
    """What a report compares: a model before, one after a campaign, and one after its control arm."""

    issue: str = Field(description="Issue that the campaign was about")
    before: str = Field(description="Model version before")
    after: str = Field(description="Model version with the campaign's labels")
    control: str = Field(description="Model version with the control arm's labels")
    campaign: str = Field(description="Campaign")
    control_campaign: str = Field(description="Control campaign of equal budget")
    overall: str = Field(description="Scenario over all holdout data")
    slice: str = Field(description="Scenario of the issue's slice")
