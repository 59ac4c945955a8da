"""All that a retraining needs, looked at before anything is fitted: what is wrong with a plan costs no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import pyarrow as pa
from pydantic import Field

from models.base import utc_now
from models.corpus import EncoderSpec
from models.errors import BadInput, Incompatible
from models.learning import Comparison, Evaluation, Gate, ModelVersion, Scenario
from models.outcomes import Compared, Gated
from models.retraining import RetrainPlan
from models.states import Split
from models.values import Report
from storage import campaigns, corpora, runs, tables
from storage.stores import Stores, open_stores
from tasks import scenarios
from tasks.datasets import train_corpora
from tasks.steps import step

EVERY = "*"
NONE = "none"


class Prepared(Report):
    """What a retraining evaluates on, against which model, and about which issues it is judged."""

    before: str = Field(description="the model version to compare with; empty: none")
    scenarios: dict[str, str] = Field(description="scenario versions by their names")
    issues: list[str] = Field(description="issues that a gate is about")
    left_out: dict[str, str] = Field(default_factory=dict, description="issues that cannot be judged, and why")


def require_own_name(model: str) -> None:
    """Raises BadInput for the name of a model that would be read as another thing."""
    if model in (runs.CHAMPION, NONE) or "@" in model:
        raise BadInput(f"'{model}' has a meaning of its own; give the model another name")


@step()
def check(plan: RetrainPlan) -> None:
    """Raises BadInput or NotFound for the first thing that a plan names wrongly. It writes nothing."""
    require_own_name(plan.model)
    with open_stores() as stores:
        train_corpora(stores, plan.corpora)
        for name in plan.campaigns:
            if name != EVERY:
                campaigns.get_campaign(stores.db, name=name)
        for name in plan.scenarios:
            _require_scenario(stores, name)
        if plan.issue not in ("", EVERY):
            campaigns.get_issue(stores.db, name=plan.issue)
        if plan.compare_with not in ("", NONE):
            runs.get_model(stores.db, name=plan.compare_with)
        if plan.trainer.name == "head":
            corpora.get_encoder(stores.db, name=plan.encoder or stores.settings.encoder)
    if plan.trainer.name == "finetune":
        _require_backbone(plan.trainer.finetune.backbone)


@step()
def prepare(plan: RetrainPlan, dataset_id: int, before: str) -> Prepared:
    """Freeze the scenarios that a plan asks for, and see that what is to be fitted can be evaluated there."""
    on_slices, left_out = _slices(plan, dataset_id, before)
    ready = _prepared(plan.scenarios, on_slices, before).model_copy(update={"left_out": left_out})
    if plan.trainer.name == "head":
        with open_stores() as stores:
            encoder = corpora.get_encoder(stores.db, name=plan.encoder or stores.settings.encoder)
            for version in ready.scenarios.values():
                _require_vectors(stores, runs.get_scenario(stores.db, name=version), encoder)
    return ready


@step()
def prepare_gate(before: str, after: str, issue: str, scenario_names: Sequence[str]) -> Prepared:
    """Freeze what two models that are there are judged on. Raises BadInput when they are one and the same."""
    with open_stores() as stores:
        one, other = (runs.get_model(stores.db, name=name) for name in (before, after))
        for name in scenario_names:
            _require_scenario(stores, name)
    if one.id == other.id:
        raise BadInput(f"'{before}' and '{after}' are both {one.reference}; a model is not compared with itself")
    on_slices = {issue: scenarios.issue_scenario(issue)} if issue else {}
    for name, on_slice in on_slices.items():
        _require_class(name, on_slice)
    if not on_slices:
        scenarios.overall_scenario()  # says so where there is no holdout
    return _prepared(scenario_names, on_slices, one.reference)


def _prepared(asked: Sequence[str], on_slices: Mapping[str, str], before: str) -> Prepared:
    """The scenarios that are asked for, or all there are, after those that a gate needs."""
    names = list(asked) or [*scenarios.default_scenarios(), *_known_scenarios()]
    if on_slices or (before and _has_holdout()):
        names = [*on_slices.values(), scenarios.overall_scenario(), *names]
    with open_stores() as stores:
        chosen = {name: runs.get_scenario(stores.db, name=name) for name in names}
    return Prepared(
        before=before,
        scenarios={name: one.reference for name, one in chosen.items()},
        issues=list(on_slices),
    )


def _slices(plan: RetrainPlan, dataset_id: int, before: str) -> tuple[dict[str, str], dict[str, str]]:
    """The scenario of each issue that is judged, and why others are not. Raises BadInput for one that was named."""
    on_slices: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for issue in _issues(plan, dataset_id, before):
        try:
            name = scenarios.issue_scenario(issue)
            _require_class(issue, name)
        except BadInput as problem:
            if plan.issue != EVERY:
                raise
            left_out[issue] = str(problem)
        else:
            on_slices[issue] = name
    return on_slices, left_out


@step()
def opponent(compare_with: str, model_id: int = 0) -> str:
    """The model version to compare with, also for a model that is fitted already: never itself. Empty: none."""
    if compare_with == NONE:
        return ""
    with open_stores() as stores:
        if compare_with in ("", runs.CHAMPION):
            found = runs.opponent_of(stores.db, model_id=model_id)
        else:
            found = runs.get_model(stores.db, name=compare_with)
            if found.id == model_id and "@" not in compare_with:  # run again: the newest is what was fitted then
                found = runs.find_model(stores.db, name=f"{compare_with}@{found.version - 1}")
        return found.reference if found and found.id != model_id else ""


@step()
def reference_of(model_id: int) -> str:
    """How people name a model version."""
    with open_stores() as stores:
        return stores.db.get_one(ModelVersion, model_id).reference


@step()
def moment() -> str:
    """Now, to tell what is new by: what is stored later is."""
    return utc_now().isoformat()


@step()
def is_news(since: str, evaluations: Sequence[int], comparisons: Sequence[Compared], gates: Sequence[Gated]) -> bool:
    """Whether any of these was made since a moment."""
    with open_stores() as stores:
        made = [stores.db.get_one(Evaluation, number).created_at for number in evaluations]
        made += [stores.db.get_one(Comparison, one.comparison_id).created_at for one in comparisons]
        made += [stores.db.get_one(Gate, one.gate_id).created_at for one in gates]
    return any(one >= datetime.fromisoformat(since) for one in made)


def _require_scenario(stores: Stores, name: str) -> None:
    """A scenario that is there, or one that is frozen of an evaluation corpus when it is asked for."""
    names = {corpus.name for split in scenarios.EVALUATION for corpus in corpora.list_corpora(stores.db, split=split)}
    if name not in names | {scenarios.OVERALL}:
        runs.get_scenario(stores.db, name=name)


def _require_backbone(name: str) -> None:
    from tasks.compute import network  # torchvision takes seconds, which no other trainer needs

    try:
        network.require_backbone(name)
    except network.NetworkError as error:
        raise BadInput(f"there is no torchvision network '{name}': {error}") from None


def _issues(plan: RetrainPlan, dataset_id: int, before: str) -> list[str]:
    """The issue that a plan names, or each whose campaigns' labels the model before has not seen."""
    if plan.issue != EVERY:
        return [plan.issue] if plan.issue else []
    if not before:
        return []
    with open_stores() as stores:
        known = runs.training_of(stores.db, model=runs.get_model(stores.db, name=before)).dataset_id
        fresh = runs.batches_behind(stores.db, dataset_id=dataset_id) - runs.batches_behind(stores.db, dataset_id=known)
        return [issue.name for issue in runs.issues_of_batches(stores.db, batch_ids=fresh)]


def _require_class(issue_name: str, scenario_name: str) -> None:
    """Raises BadInput for a scenario without a sample of the issue's class: no verdict could follow from it."""
    with open_stores() as stores:
        issue = campaigns.get_issue(stores.db, name=issue_name)
        listing = _listing(stores, runs.get_scenario(stores.db, name=scenario_name), ["class_name"])
        names = set(listing.column("class_name").to_pylist())
    if issue.class_name not in names:
        raise BadInput(
            f"no sample of scenario '{scenario_name}' is a '{issue.class_name}', the class of issue '{issue_name}' "
            f"(there are: {', '.join(sorted(names))}); add holdout data that is"
        )


def _require_vectors(stores: Stores, scenario: Scenario, encoder: EncoderSpec) -> None:
    """Raises Incompatible for a scenario whose images the encoder has not seen."""
    shards = _listing(stores, scenario, ["shard_id"]).column("shard_id").to_pylist()
    wanted = sorted({number for number in shards if number is not None})
    rows = corpora.embedded_by_shard(stores.db, shard_ids=wanted, encoder_id=encoder.id or 0)
    if len({row.shard_id for row in rows}) < len(wanted):
        raise Incompatible(
            f"images of scenario '{scenario.name}' have no vectors of encoder '{encoder.name}'; embed their corpora with: "
            f"dipnet embed CORPUS --encoder {encoder.name}"
        )


def _listing(stores: Stores, scenario: Scenario, columns: list[str]) -> pa.Table:
    return tables.read(stores.objects, scenario.listing_key, scenario.listing_sha256, columns)


def _known_scenarios() -> list[str]:
    with open_stores() as stores:
        return runs.scenario_names(stores.db)


def _has_holdout() -> bool:
    with open_stores() as stores:
        return bool(corpora.list_corpora(stores.db, split=Split.HOLDOUT))
