"""What is known of models, as rows that a person or a script can read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from models.campaign import Issue
from models.errors import BadInput
from models.learning import Comparison, DatasetVersion, Gate, ModelVersion
from storage import corpora, provenance, runs, tables
from storage.stores import Stores, open_stores
from tasks.compute import ranking
from tasks.predicting import predictions_of

Row = dict[str, Any]
METRICS = ("precision", "recall", "f1", "average_precision")


def model_rows() -> list[Row]:
    """A row a model version, the newest first."""
    with open_stores() as stores:
        champion = runs.champion(stores.db)
        return [
            {
                "model": model.reference,
                "champion": "★" if champion and champion.id == model.id else "",
                "trainer": runs.training_of(stores.db, model=model).trainer,
                "samples": _samples(stores, model),
                "classes": len(model.class_names),
                "verdicts": ", ".join(
                    gate.verdict.value for gate, _ in provenance.gates_about(stores.db, after_id=model.id or 0)
                ),
                "made": model.created_at.isoformat(" ", "seconds")[:16],
            }
            for model in reversed(runs.list_models(stores.db))
        ]


def model_record(reference: str) -> Row:
    """What a model was trained on, how good it is, and what was said of it."""
    with open_stores() as stores:
        model = runs.get_model(stores.db, name=reference)
        run, champion = runs.training_of(stores.db, model=model), runs.champion(stores.db)
        versions = runs.lineage(stores.db, dataset_id=run.dataset_id) if run.dataset_id is not None else []
        record: Row = {
            "model": model.reference,
            "champion": bool(champion and champion.id == model.id),
            "trainer": run.trainer,
            "parameters": run.parameters,
            "seed": run.seed,
            "seconds": round(run.seconds, 1),
            "classes": model.class_names,
            "dataset": versions[0].content_hash[:12] if versions else "",
            "splits": versions[0].splits if versions else {},
            "adds_batches": sorted({number for version in versions for number in version.adds_batches}),
            "made": model.created_at.isoformat(" ", "seconds"),
        }
        gates = provenance.gates_about(stores.db, after_id=model.id or 0)
        record["gates"] = [_gate(stores, gate, issue) for gate, issue in gates]
        record["promotions"] = [row for row in _history(stores) if row["model"] == model.reference]
    return {**record, "evaluations": metric_rows(model.reference)}


def champion_record() -> Row:
    """The champion, and why it is. Raises BadInput where there is none."""
    with open_stores() as stores:
        standing = runs.standing_promotions(stores.db)
        if not standing:
            raise BadInput("no model is champion yet; promote one with: dipnet model promote MODEL")
        promotion, model = standing[0]
        since = promotion.created_at.isoformat(" ", "seconds")
        return {"champion": model.reference, "since": since, "because": promotion.reason}


def history_rows() -> list[Row]:
    """A row a promotion, the newest first; those that were undone too."""
    with open_stores() as stores:
        return _history(stores)


def metric_rows(reference: str) -> list[Row]:
    """A row a scenario that a model was evaluated on, with 95 % intervals."""
    with open_stores() as stores:
        model = runs.get_model(stores.db, name=reference)
        return [
            {
                "scenario": scenario.name if scenario.version == 1 else scenario.reference,
                "samples": scenario.samples,
                **_with_interval(evaluation.metrics, "accuracy"),
                **_with_interval(evaluation.metrics, "macro_f1"),
                **{name: evaluation.metrics[name] for name in ("ece",) if evaluation.metrics.get(name) is not None},
            }
            for evaluation, scenario in runs.evaluations_of(stores.db, model_id=model.id or 0)
        ]


def evaluation_record(model_name: str, scenario_name: str) -> Row:
    """A stored evaluation: the metrics over all, and a row a class."""
    with open_stores() as stores:
        model = runs.get_model(stores.db, name=model_name)
        scenario = runs.get_scenario(stores.db, name=scenario_name)
        found = runs.evaluation_on(stores.db, model_id=model.id or 0, scenario_id=scenario.id or 0)
        metrics = dict(found.metrics) if found else {}
    classes = [{"class": name, **row} for name, row in metrics.pop("classes", {}).items()]
    overall = {"class": "all (macro F1; accuracy as recall)", "precision": "", "recall": metrics.get("accuracy")}
    overall |= {"f1": metrics.get("macro_f1"), "support": metrics.get("samples")}
    return {"model": model.reference, "scenario": scenario_name, **metrics, "classes": [*classes, overall]}


def class_rows(record: Row) -> list[Row]:
    """An evaluation's classes with their intervals in one cell each, as they fit a screen."""
    rows = []
    for row in record["classes"][:-1]:
        shown = {"class": row["class"], "samples": row["support"]}
        shown |= {name: _estimate(row, name) for name in METRICS if row.get(name) is not None}
        rows.append(shown)
    overall = {"class": "accuracy", "samples": record.get("samples"), METRICS[0]: _estimate(record, "accuracy")}
    macro = {"class": "macro F1", "samples": record.get("samples"), "f1": _estimate(record, "macro_f1")}
    names = {name: "" for row in rows for name in row}
    return [{**names, **row} for row in [*rows, overall, macro]]


def delta_rows(comparison_id: int) -> list[Row]:
    """A row a metric of a comparison, the largest difference first."""
    with open_stores() as stores:
        rows = [
            {
                "class": row.class_name or "all",
                "metric": row.metric,
                "before": row.before,
                "after": row.after,
                "delta": row.after - row.before,
                "low": row.low,
                "high": row.high,
                "p": row.p,
                "q": row.q,
                "detectable": row.detectable,
            }
            for row in runs.deltas_of(stores.db, comparison_id=comparison_id)
        ]
    return sorted(rows, key=lambda row: -abs(row["delta"]))


def comparison_record(comparison_id: int) -> Row:
    """What a comparison says beside its deltas: McNemar's test, samples that improved and worsened."""
    with open_stores() as stores:
        found = stores.db.get_one(Comparison, comparison_id)
        kept: Row = {name: found.summary[name] for name in ("mcnemar", "improved", "worsened") if name in found.summary}
        return {"samples": found.samples, "groups": found.groups, **kept}


def change_rows(comparison_id: int) -> list[Row]:
    """A row a sample that improved or worsened."""
    with open_stores() as stores:
        found = stores.db.get_one(Comparison, comparison_id)
        if not found.changes_key:
            return []
        rows: list[Row] = tables.from_bytes(stores.objects.read(found.changes_key)).to_pylist()
        samples = corpora.known_samples(stores.db, ids=[row["sample_id"] for row in rows])
    said = {1: "improved", -1: "worsened", 0: "wrong both times, otherwise"}
    changed = [
        {
            "change": said[row["change"]],
            "class": row["class_name"],
            "before": row["before"],
            "after": row["after"],
            "sample": row["sample_id"][:12],
            "image": samples[row["sample_id"]].uri if row["sample_id"] in samples else "",
        }
        for row in rows
    ]
    return sorted(changed, key=lambda row: list(said.values()).index(row["change"]))


def finding_rows(gate_id: int) -> list[Row]:
    """A row a test that a gate made."""
    with open_stores() as stores:
        findings = stores.db.get_one(Gate, gate_id).findings
    return [
        {
            "role": row["role"],
            "on": row["name"] or "all",
            "metric": row["metric"],
            "says": row["says"],
            "delta": row["delta"],
            "low": row["low"],
            "high": row["high"],
            "margin": row["margin"],
            "p": row["p"],
            "q": row["q"],
            "samples": row["samples"],
            "would_decide": row["samples_needed"],
        }
        for row in findings
    ]


def threshold_rows(model_name: str, scenario_name: str, class_name: str) -> list[Row]:
    """A row a threshold of a class's probability: who says the class from there on is right so often, and finds so many.

    Raises BadInput for a class that is not there, and for a model without probabilities.
    """
    with open_stores() as stores:
        model = runs.get_model(stores.db, name=model_name)
        found = predictions_of(stores, model, runs.get_scenario(stores.db, name=scenario_name))
        if class_name not in found.class_names:
            raise BadInput(
                f"there is no class '{class_name}' on '{scenario_name}'; known: {', '.join(found.class_names)}"
            )
        scores = found.read_probability(class_name)
    if scores is None:
        raise BadInput(
            f"model '{model_name}' gave no probabilities on '{scenario_name}', so there is no threshold to set"
        )
    sweep = ranking.threshold_sweep(scores, found.targets == found.class_names.index(class_name))
    names = ("threshold", "precision", "recall", "f1", "said")
    return [dict(zip(names, row, strict=True)) for row in zip(*(column.tolist() for column in sweep), strict=True)]


def thinned(rows: list[Row], *, most: int = 20) -> list[Row]:
    """So many rows evenly, and the one with the best F1."""
    if len(rows) <= most:
        return rows
    best = max(range(len(rows)), key=lambda place: rows[place]["f1"])
    kept = {round(step * (len(rows) - 1) / (most - 1)) for step in range(most)} | {best}
    return [rows[place] for place in sorted(kept)]


def brief(rows: list[Row]) -> list[Row]:
    """Rows for a screen of 80 columns: a value and its interval in one cell, lists as lines, few digits."""
    return [dict(_brief(row)) for row in rows]


def _brief(row: Row) -> Iterator[tuple[str, Any]]:
    folded = {f"{name}_{end}" for name in row for end in ("low", "high")} | {"low", "high", "p"}
    for name, value in row.items():
        if name == "role":
            continue
        if name == "on":
            yield name, row["on"] if row["role"] == "overall" else f"{row['role']} {row['on']}"
        elif name == "delta" and value is not None:
            yield name, f"{value:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        elif f"{name}_low" in row and value is not None:
            yield name, f"{value:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
        elif name not in folded:
            yield (
                name,
                round(value, 3) if isinstance(value, float) else "; ".join(value) if name == "reasons" else value,
            )


def _with_interval(metrics: Row, name: str) -> Row:
    found = {name: metrics.get(name)}
    interval = metrics.get("intervals", {}).get(name)
    return found | ({f"{name}_low": interval["low"], f"{name}_high": interval["high"]} if interval else {})


def _estimate(row: Row, name: str) -> str:
    """A value with its interval, where it has one: 0.912 [0.88, 0.94]."""
    interval = row.get("intervals", {}).get(name)
    shown = f"{row[name]:.3f}" if row.get(name) is not None else "–"
    return f"{shown} [{interval['low']:.2f}, {interval['high']:.2f}]" if interval else shown


def _samples(stores: Stores, model: ModelVersion) -> int | None:
    number = runs.training_of(stores.db, model=model).dataset_id
    return stores.db.get_one(DatasetVersion, number).splits.get("train") if number is not None else None


def _gate(stores: Stores, gate: Gate, issue: Issue | None) -> Row:
    before = stores.db.get(ModelVersion, gate.before_id) if gate.before_id else None
    return {
        "gate": gate.id,
        "against": before.reference if before else "",
        "issue": issue.name if issue else "",
        "verdict": gate.verdict.value,
        "reasons": gate.reasons,
        "samples_needed": gate.samples_needed,
    }


def _history(stores: Stores) -> list[Row]:
    standing = runs.standing_promotions(stores.db)
    newest = standing[0][0].id if standing else None
    return [
        {
            "model": model.reference,
            "state": "undone" if promotion.undone_at else "champion" if promotion.id == newest else "before",
            "since": promotion.created_at.isoformat(" ", "seconds")[:16],
            "undone": promotion.undone_at.isoformat(" ", "seconds")[:16] if promotion.undone_at else "",
            "because": promotion.reason,
        }
        for promotion, model in runs.promotions(stores.db)
    ]
