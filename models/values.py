"""What a step or a flow reports back: frozen, counts and ids, never arrays."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from models.states import BatchState, RequestState


class Report(BaseModel):
    """What a step or a flow reports: counts and ids, never arrays."""

    model_config = ConfigDict(frozen=True)


class Ingested(Report):
    """Outcome of ingest-corpus."""

    corpus: str
    images: int
    new_images: int
    new_shards: int
    labels: int = 0
    vanished: int = Field(0, description="elements that were listed before and are not there any more")
    findings: dict[str, int] = Field(
        default_factory=dict, description="what of the source and the metadata cannot be used, by reason"
    )


class EmbeddedGroup(Report):
    """What one step embedded, and what its stages took."""

    left: list[int] = Field(default_factory=list, description="shards that another embedder is at work on")
    shards: int = 0
    images: int = Field(0, description="elements that were looked at")
    bytes: int = 0
    seconds: float = 0.0
    cores: int = 1
    workers: int = Field(1, description="processes that decode")
    device: str = "cpu"
    read_seconds: float = Field(0.0, description="that decoders waited for bytes, all together")
    decode_seconds: float = Field(0.0, description="of processor time")
    encode_seconds: float = Field(0.0, description="of processor time; on a GPU, that it was busy")


class Embedded(Report):
    """Outcome of embed-corpus for one corpus."""

    corpus: str
    encoder: str
    backend: str = ""
    images: int
    vectors: int
    shards_done: int
    shards_skipped: int
    quarantined: dict[str, int] = Field(default_factory=dict)
    images_per_second: float = Field(0.0, description="of this run; 0 where it embedded nothing")
    megabytes_per_second: float = 0.0
    share_of_limit: float = Field(0.0, description="how busy the busiest of processors and GPU was")
    bottleneck: str = Field("", description="the stage that the others wait for: reading, decoding or encoding")


class VectorsImported(Report):
    """Outcome of taking vectors that were made elsewhere."""

    corpus: str
    encoder: str
    declared: bool = Field(description="whether the encoder cannot be loaded here: no queries by text or by new images")
    given: int = Field(description="vectors in the files")
    vectors: int = Field(description="of these, taken now")
    unmatched: int = Field(description="of these, about no image of the corpus")
    ambiguous: int = Field(description="of these, left out since their names fit several images")
    without: int = Field(description="images of shards that were completed now, without a vector")
    shards_done: int
    shards_skipped: int = Field(description="that have vectors of this encoder already")
    shards_left: int = Field(description="of which no image has a vector, or that somebody embeds just now")
    quarantined: dict[str, int] = Field(default_factory=dict)
    cosine: float | None = Field(None, description="median, to what the encoder makes of some of the images here")


class VectorsExported(Report):
    """Outcome of writing vectors as a folder."""

    folder: str
    corpus: str
    encoder: str
    vectors: int
    parts: int
    reused: bool = Field(description="whether the folder held just this already")


class Indexed(Report):
    """Outcome of build-index."""

    key: str = Field(description="hash of the vectors and the method")
    corpora: list[str]
    encoder: str
    vectors: int
    recall: float = Field(description="share of the true 100 nearest that a search finds, mean over queries")
    recall_low: float = Field(description="lower end of its 95 % interval")
    recall_high: float
    queries: int = Field(description="drawn from the corpora, other than those that tuning saw")
    lists: int
    nprobe: int = Field(description="lists that a search looks into")
    depth: int = Field(description="candidates whose exact scores are computed")
    seconds: float = Field(description="of the run that completed it")
    index_sha256: str
    lists_sha256: str


class Mined(Report):
    """Outcome of mining."""

    run_id: int
    series: int = 1
    round: int = 1
    scanned: int
    candidates: int
    excluded: dict[str, int] = Field(default_factory=dict)
    found: dict[str, Any] = Field(default_factory=dict, description="adequacy, scores, expected yield")


class Collected(Report):
    """Outcome of taking back what a collection process kept."""

    campaign: str
    seen: int = Field(description="frames that were scored")
    kept: int = Field(description="of these, kept")
    unknown: int = Field(description="of these, in none of the campaign's embedded corpora")
    filtered: int = Field(0, description="of these, outside the campaign's filter")
    scored_otherwise: int = Field(description="of these, whose vectors here score otherwise")
    new: int = Field(description="of these, candidates")
    duplicate: int = Field(description="of these, known, too alike or beyond the budget")
    excluded: dict[str, int] = Field(default_factory=dict)
    run_id: int = Field(0, description="the run that holds the candidates; 0 for a dry run, and where nothing is new")


class Sent(Report):
    """Outcome of routing a run."""

    run_id: int
    batch_id: int
    project: str
    sent: int
    golden: int = Field(0, description="items of known answer among them, beside the budget")
    url: str = ""
    note: str = Field("", description="why nothing was sent; empty when something was")


class Synced(Report):
    """Outcome of one poll, for one batch."""

    batch_id: int
    campaign: str
    state: BatchState
    new_labels: int = Field(description="answers, corrections and withdrawals that were not known")
    rejected: int = Field(description="of the batch's answers, those that are not in its schema")
    states: dict[RequestState, int]
    golden: int = Field(0, description="items of known answer among them")
    foreign: int = Field(0, description="items of the project that are not ours; they are left alone")
    complete: bool
    reason: str = ""


class Share(Report):
    """A share of so many, with its 95 % interval (Clopper and Pearson)."""

    right: int
    of: int
    share: float
    low: float
    high: float


class AnnotatorQuality(Report):
    """How one annotator answers, and what it takes them."""

    annotator: str
    answers: int = Field(description="without skips, rejected and withdrawn ones")
    skips: int
    rejected: int
    golden: Share | None = Field(description="answers to items of known answer")
    alpha: float | None = Field(description="Krippendorff's alpha over the pairs that they are part of")
    as_predicted: Share | None = Field(description="answers that are the pre-annotation")
    minutes: float
    median_seconds: float | None


class ClassQuality(Report):
    """How far annotators and the model agree on one class."""

    class_name: str
    labelled: int = Field(description="images whose resolved label names it")
    alpha: float | None = Field(description="Krippendorff's alpha of the class against the rest")
    predicted: Share | None = Field(description="of these images, pre-annotated as it")


class BatchQuality(Report):
    """What a batch's answers are worth, and what they cost."""

    batch_id: int
    campaign: str
    state: str
    reason: str = ""
    requests: dict[str, int]
    answers: int
    rejected: int
    withdrawn: int
    contested: int = Field(description="images whose annotators disagree")
    differently: int = Field(description="images that majority and Dawid-Skene resolve differently")
    alpha: float | None = Field(description="Krippendorff's alpha, nominal; none where no image has two answers")
    alpha_low: float | None = None
    alpha_high: float | None = None
    golden: Share | None
    as_predicted: Share | None = Field(description="resolved labels that are the model's pre-annotation")
    kappa: float | None = Field(description="Cohen's kappa of the pre-annotations and the resolved labels")
    minutes: float
    cost: float
    foreign: int
    doubled: int
    annotators: list[AnnotatorQuality]
    classes: list[ClassQuality]


class RequestDraft(Report):
    """A label request on its way to a labeller."""

    key: str
    uri: str
    sample_id: str
    priority: int
    predicted_class: str = ""
    predicted_probability: float = 0.0
    model_version: str = ""


class Example(Report):
    """An exemplar as annotators see it."""

    sample_id: str
    uri: str
    positive: bool


class ProjectBrief(Report):
    """What a labeller needs to know to open a project."""

    title: str
    class_names: list[str]
    instructions: str
    id: int = Field(0, description="our own id of the project; 0: it has none yet")
    multiple: bool = False
    opinions: int = 1
    examples: list[Example] = Field(default_factory=list)


class Answer(Report):
    """One annotator's answer to an item, as it stands at the labeller now."""

    external_id: str
    state: RequestState
    class_names: list[str] = Field(default_factory=list)
    wrong: str = Field("", description="what the labeller itself would not have accepted")
    annotator: str = ""
    origin: str = Field("", description="manual, prediction or prediction-changed")
    lead_seconds: float = 0.0
    answered_at: datetime


class Item(Report):
    """One of our requests as it stands at the labeller, with all its answers."""

    key: str
    external_id: str
    changed_at: datetime
    answers: list[Answer]


class Waiting(Report):
    """A request that waits for answers."""

    sample_id: str
    opinions: int
    offered: tuple[str, ...] = Field((), description="classes that may be answered")


class Settled(Report):
    """What is stored of the time just before a watermark, so that a labeller that counts the same need not list it again."""

    since: datetime
    until: datetime
    answered: int = Field(description="items of ours with answers that changed within, both ends included")
    skipped: int = Field(description="items of ours with skips that changed within")


class Census(Report):
    """How many items of ours a project holds, how many of others, and how many answers there are to ours."""

    ours: int
    foreign: int
    answers: int = Field(description="without skips")
    skipped_items: int = Field(description="items that somebody skipped")


class Proposed(Report):
    """An issue that discovery opened or found again."""

    issue: str
    class_name: str
    taken_for: str
    failures: int
    exemplars: int
    slice_where: str


class CampaignOutcome(Report):
    """Outcome of run-campaign."""

    campaign: str
    status: str = Field(description="what the campaign waits for, or why it has ended")
    mined: Mined
    sent: Sent | None = None


class Continued(Report):
    """What became of a campaign that could go on."""

    campaign: str
    status: str


class Reviewed(Report):
    """A mined run before it is sent."""

    campaign: str
    run_id: int
    accepted: int
    discarded: int
    unsorted: int
    sheet: str = ""
    candidates: list[dict[str, Any]]


class Previewed(Report):
    """Outcome of a dry run."""

    campaign: str
    status: str
    mined: Mined | None
    sheet: str = Field("", description="the contact sheet, where one was asked for")


class Round(Report):
    """What a round of a campaign cost and found."""

    run_id: int
    series: int
    round: int
    state: str
    labels: int
    hits: int
    low: float = Field(description="of hits per label, 95 %")
    high: float
    minutes: float
    cost: float


class Progress(Report):
    """How a campaign does, and whether it should go on."""

    campaign: str
    state: str
    labels: int
    hits: int
    minutes: float
    cost: float
    rounds: list[Round]
    next_hit: dict[str, float] = Field(description="labels, minutes and money that the next hit will probably take")
    prevalence: dict[str, float] = Field(description="share of hits in the pool as it was, by the random arms")
    missed: dict[str, float] = Field(description="hits of the pool that are not found, by the random arms")
    stop: str = Field("", description="why it should stop; empty: it should not")
