"""All that is known of a change, gathered for a report: figures before and after, verdicts, uplift, and where it came from."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow.compute as pc

from models.learning import Comparison, Evaluation, ModelVersion, Scenario
from storage import provenance, runs, tables
from storage.stores import Stores
from tasks import attribution
from tasks.scenarios import OVERALL

Row = dict[str, Any]
OF_CLASSES = ("f1", "precision", "recall")
CHANGES = {1: "improved", -1: "worsened"}
SHOWN = ["sample_id", "class_name", "before", "after"]
MOST = 200  # changed samples of each kind that are named


class Side(NamedTuple):
    """A scenario, and what both models showed there; a first model has no `before`, and nothing to compare."""

    scenario: Scenario
    after: Evaluation
    before: Evaluation | None
    comparison: Comparison | None


def gather(stores: Stores, model: ModelVersion) -> Row:
    """A model's evidence as JSON: no row ids and no times, so that the same work says the same."""
    before = _before(stores, model)
    sides = _sides(stores, model, before)
    made_of = _made_of(attribution.model_record(model.reference))
    record: Row = {
        "version": 1,
        "model": model.reference,
        "before": before.reference if before else "",
        "gates": _gates(stores, model),
        "scenarios": [_scenario(stores, side) for side in sides],
        "made_of": made_of,
        "costs": [_cost(row["campaign"]) for row in made_of["campaigns"]],
        "uplift": [one for row in made_of["campaigns"] for one in row["uplift"]],
        "changes": _changes(stores, sides),
    }
    main = _main(sides)
    return record | (
        _in_detail(stores, main) if main else {"main": "", "classes": [], "confusion": {}, "calibration": {}}
    )


def _before(stores: Stores, model: ModelVersion) -> ModelVersion | None:
    """What the newest gate compared it with; failing that, the newest comparison."""
    gates = provenance.gates_about(stores.db, after_id=model.id or 0)
    if gates and gates[-1][0].before_id:
        return stores.db.get(ModelVersion, gates[-1][0].before_id)
    compared = provenance.comparisons_with(stores.db, after_id=model.id or 0)
    return compared[-1][1] if compared else None


def _sides(stores: Stores, model: ModelVersion, before: ModelVersion | None) -> list[Side]:
    """Every scenario that the model was evaluated on, in its newest version; the issues' first, and then by name."""
    newest: dict[str, Side] = {}
    for evaluation, scenario in sorted(
        runs.evaluations_of(stores.db, model_id=model.id or 0), key=lambda p: p[1].version
    ):
        newest[scenario.name] = _side(stores, before, evaluation, scenario, after_id=model.id or 0)
    return sorted(newest.values(), key=lambda side: (side.scenario.issue_id is None, side.scenario.name))


def _side(
    stores: Stores, before: ModelVersion | None, evaluation: Evaluation, scenario: Scenario, *, after_id: int
) -> Side:
    if before is None:
        return Side(scenario, evaluation, None, None)
    before_id, scenario_id = before.id or 0, scenario.id or 0
    comparison = runs.find_comparison(stores.db, before_id=before_id, after_id=after_id, scenario_id=scenario_id)
    other = runs.evaluation_on(stores.db, model_id=before_id, scenario_id=scenario_id)
    return Side(scenario, evaluation, other if comparison else None, comparison)


def _main(sides: list[Side]) -> Side | None:
    """The scenario that is shown class by class: that of all holdout data, else the largest that was compared."""
    if not sides:
        return None
    return max(sides, key=lambda s: (s.comparison is not None, s.scenario.name == OVERALL, s.scenario.samples))


def _scenario(stores: Stores, side: Side) -> Row:
    """One scenario: how good both models are there, and the differences over all classes."""
    summary = side.comparison.summary if side.comparison else {}
    rows = runs.deltas_of(stores.db, comparison_id=side.comparison.id or 0) if side.comparison else []
    return {
        "scenario": side.scenario.reference,
        "kind": side.scenario.kind.value,
        "where": side.scenario.where,
        "samples": side.after.metrics.get("samples", side.scenario.samples),
        "after": _overall(side.after),
        "before": _overall(side.before) if side.before else {},
        "deltas": {row.metric: _delta(row) for row in rows if not row.class_name},
        "classes": {row.class_name: _delta(row) for row in rows if row.class_name and row.metric == "f1"},
        "mcnemar": summary.get("mcnemar", {}),
        "improved": summary.get("improved"),
        "worsened": summary.get("worsened"),
    }


def _overall(evaluation: Evaluation) -> Row:
    names = ("accuracy", "macro_f1", "ece", "brier", "log_loss", "intervals")
    return {name: evaluation.metrics.get(name) for name in names}


def _delta(row: Any) -> Row:
    kept = ("before", "after", "low", "high", "p", "q", "detectable")
    return {"delta": row.after - row.before, **{name: getattr(row, name) for name in kept}}


def _in_detail(stores: Stores, side: Side) -> Row:
    """Class by class: metrics or differences, confusion, calibration."""
    rows = runs.deltas_of(stores.db, comparison_id=side.comparison.id or 0) if side.comparison else []
    deltas: dict[str, Row] = {}
    for row in rows:
        if row.class_name:
            deltas.setdefault(row.class_name, {})[row.metric] = _delta(row)
    told = side.after.metrics.get("classes", {})
    return {
        "main": side.scenario.reference,
        "classes": [
            {"class_name": name, **{key: told.get(name, {}).get(key) for key in (*OF_CLASSES, "support")},
             "deltas": deltas.get(name, {})}
            for name in sorted({*told, *deltas})
        ],
        "confusion": {
            "after": _confusion(side.after),
            "before": _confusion(side.before) if side.before else {},
        },
        "calibration": {
            "after": side.after.metrics.get("calibration") or [],
            "before": (side.before.metrics.get("calibration") or []) if side.before else [],
        },
    }  # fmt: skip


def _confusion(evaluation: Evaluation) -> Row:
    return {"class_names": evaluation.metrics.get("class_names", []), "counts": evaluation.metrics.get("confusion", [])}


def _changes(stores: Stores, sides: list[Side]) -> Row:
    """Samples that improved, and that worsened, on any scenario: how many, and the first; an issue's own come first."""
    found: dict[str, dict[str, Row]] = {said: {} for said in CHANGES.values()}
    counted: dict[str, set[str]] = {said: set() for said in CHANGES.values()}
    for side in sides:
        if not (side.comparison and side.comparison.changes_key):
            continue
        table = tables.from_bytes(stores.objects.read(side.comparison.changes_key))
        for change, said in CHANGES.items():
            rows = table.filter(pc.equal(table.column("change"), change)).select(SHOWN)
            counted[said] |= set(rows.column("sample_id").to_pylist())
            for row in rows.slice(0, MOST - len(found[said])).to_pylist():
                found[said].setdefault(row["sample_id"], {**row, "scenario": side.scenario.reference})
    return {said: {"count": len(counted[said]), "samples": list(rows.values())} for said, rows in found.items()}


def _gates(stores: Stores, model: ModelVersion) -> list[Row]:
    before = {one.id: one.reference for one in runs.list_models(stores.db)}
    return [
        {
            "issue": issue.name if issue else "",
            "class_name": issue.class_name if issue else "",
            "before": before.get(gate.before_id, ""),
            "verdict": gate.verdict.value,
            "reasons": gate.reasons,
            "findings": gate.findings,
            "samples_needed": gate.samples_needed,
        }
        for gate, issue in provenance.gates_about(stores.db, after_id=model.id or 0)
    ]


def _made_of(record: Row) -> Row:
    dataset = record["dataset"]
    kept = {name: dataset.get(name) for name in ("hash", "samples", "splits", "excluded")} if dataset else {}
    training = {name: record[name] for name in ("trainer", "parameters", "seed")}
    return {**training, "dataset": kept, "campaigns": dataset.get("campaigns", []) if dataset else []}


def _cost(name: str) -> Row:
    record = attribution.campaign_record(name)
    kept = ("campaign", "issue", "class_name", "asked", "answered", "labels", "hits", "minutes", "cost", "answer")
    return {name: record[name] for name in kept}
