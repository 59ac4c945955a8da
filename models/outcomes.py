"""What dataset versions, fits, comparisons and verdicts report back: frozen, counts and ids, never arrays."""

from __future__ import annotations

from pydantic import Field

from models.states import Verdict
from models.values import Report


class Fitted(Report):
    """Outcome of a fit."""

    model_id: int
    model: str
    dataset_id: int
    samples: int = Field(description="of the train split")
    reused: bool
    version: int = 1
    unreadable: dict[str, int] = Field(default_factory=dict, description="images that were left out, by reason")
    notes: list[str] = Field(default_factory=list, description="what was decided on the way")


class Problem(Report):
    """One kind of thing that is wrong in a file of predictions, and where it first occurs."""

    kind: str
    rows: int = Field(description="rows of the file, or for missing ones samples")
    allowed: bool = Field(description="whether the file is taken all the same")
    examples: list[str]


class Imported(Report):
    """Outcome of taking predictions from a file."""

    model: str
    version: int = 0
    stored: bool
    reused: bool = False
    rows: int = Field(description="rows of the file")
    scenarios: dict[str, int] = Field(default_factory=dict, description="samples answered for, by scenario")
    probabilities: int = Field(0, description="classes that have them")
    ignored: list[str] = Field(default_factory=list, description="columns that say nothing to dipnet")
    problems: list[Problem] = Field(default_factory=list)


class Compared(Report):
    """Outcome of a comparison."""

    comparison_id: int
    scenario: str
    before: str
    after: str


class Gated(Report):
    """A gate's verdict and its reasons."""

    issue: str = Field(description="what it is about; empty: the change as a whole")
    verdict: Verdict
    reasons: list[str]
    gate_id: int = 0
    before: str = ""
    after: str = ""
    samples_needed: int | None = Field(None, description="of the target scenario, to decide what is inconclusive")


class Uplifted(Report):
    """What a campaign's labels gave beyond as many of its control, over several training seeds."""

    uplift_id: int
    campaign: str
    control: str
    scenario: str
    samples: int = Field(description="of the scenario")
    class_name: str = Field(description="empty: over all classes")
    metric: str
    budget: int = Field(description="labels of each arm that were learnt from")
    seeds: list[int]
    by_seed: list[dict[str, float]] = Field(description="the metric of control and of campaign")
    mean: float
    low: float
    high: float
    excluded: dict[str, dict[str, int]] = Field(
        default_factory=dict, description="labels of base, control and campaign that were not learnt from, by reason"
    )
    warnings: list[str] = Field(default_factory=list, description="what makes the comparison less than fair")
    reused: bool


class Retrained(Report):
    """Outcome of retrain-and-evaluate."""

    fitted: Fitted
    evaluations: dict[str, int] = Field(description="evaluation by scenario")
    comparisons: list[Compared]
    model: str = Field("", description="the model version, as NAME@VERSION")
    compared_with: str = Field("", description="the model version that it was compared with; empty: none")
    gates: list[Gated] = Field(
        default_factory=list, description="a verdict an issue, or one about the change as a whole"
    )
    left_out: dict[str, str] = Field(default_factory=dict, description="issues that could not be judged, and why")
    champion: str = Field("", description="the champion from now on")
    promotion: str = Field("", description="why it became champion, or why not")
    unchanged: str = Field("", description="says so when nothing was new; empty: something was")
    report: str = Field("", description="where report.html is")

    @property
    def gate(self) -> Gated | None:
        """The first verdict, where there is one."""
        return self.gates[0] if self.gates else None


class Exported(Report):
    """A dataset version as a folder."""

    folder: str
    dataset_id: int
    samples: int
    images: int
    reused: bool = Field(description="whether the folder held this very export already")


class Grown(Report):
    """What became of a scenario that was to grow."""

    scenario: str = Field(description="its newest version, as NAME@VERSION")
    samples: int
    added: int = Field(description="samples that the version before lacks; 0: no new version was made")
    relabelled: int = Field(description="samples of the version before whose label has been corrected since")


class Promoted(Report):
    """What became of the champion."""

    champion: str = Field(description="the champion now; empty: there is none")
    before: str = Field("", description="the champion before")
    changed: bool
    reason: str
