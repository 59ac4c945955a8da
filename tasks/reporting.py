"""What a person sees of a model: report.html, which stands alone, and report.json, which says the same to scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from prefect.artifacts import create_image_artifact
from prefect.context import FlowRunContext

from models.learning import ModelVersion
from storage import corpora, runs
from storage.stores import Stores, open_stores
from tasks import charts, evidence, publishing, rendering
from tasks.steps import step

Row = dict[str, Any]
MOST_CLASSES = 40  # differences that a forest shows
MOST_CELLS = 25  # classes of a confusion matrix that a person can read
MOST_IMAGES = 24  # of each kind
PANELS = {"f1": "F1", "precision": "precision", "recall": "recall"}
SURELY = 0.05  # q


@step()
def write_model_report(model_ref: str) -> str:
    """Write a model's report beside its weights, and return the place of its HTML. The same evidence gives the same bytes.

    In a flow run, the differences class by class are a picture in the Prefect UI too.
    """
    with open_stores() as stores:
        model = runs.get_model(stores.db, name=model_ref)
        record = evidence.gather(stores, model)
        html = rendering.render("model.html.j2", record=record, images=_images(stores, record), **_charts(record))
        place = f"reports/{model.reference}/"
        found = rendering.write(stores.objects, place, html, record)
    _publish(model, record)
    return found[0]


def _publish(model: ModelVersion, record: Row) -> None:
    """A picture whose address is the picture itself: both UIs of Prefect show it, and no server has to serve it."""
    if FlowRunContext.get() and (bars := _compared(record)):
        image = charts.png(*charts.forest(_panels(bars[:MOST_CLASSES])))
        create_image_artifact(
            key=publishing.key_of(f"model-{model.name}-picture"),
            image_url=rendering.data_uri(image),
            description=f"{record['before']} → {record['model']} on {record['main']}: differences with 95 % intervals",
        )


def _charts(record: Row) -> Row:
    """Every picture of the report; empty where there is nothing to draw."""
    drawn: Row = {
        "forest": "",
        "calibration": "",
        "confusions": [],
        "seeds": [],
        "classes_left_out": 0,
        "cells_left_out": 0,
    }
    compared = _compared(record)
    if compared:
        label = f"differences of {record['model']} and {record['before']} by class"
        drawn["forest"] = rendering.picture(charts.forest(_panels(compared[:MOST_CLASSES])), label)
        drawn["classes_left_out"] = max(0, len(compared) - MOST_CLASSES)
    drawn |= _confusions(record)
    bins_of = record["calibration"]
    some = [
        (record[name], bins_of[side]) for name, side in (("before", "before"), ("model", "after")) if bins_of.get(side)
    ]
    if some:
        drawn["calibration"] = rendering.picture(charts.calibration(some), "calibration")
    drawn["seeds"] = [rendering.by_seed(one) for one in record["uplift"]]
    return drawn


def _compared(record: Row) -> list[Row]:
    """Classes that have differences, those whose F1 moved most first."""
    rows = [row for row in record["classes"] if "f1" in row["deltas"]]
    return sorted(rows, key=lambda row: -abs(row["deltas"]["f1"]["delta"]))


def _panels(rows: Sequence[Row]) -> list[charts.Panel]:
    def bar(row: Row, metric: str) -> charts.Bar:
        found = row["deltas"][metric]
        return charts.Bar(row["class_name"], found["delta"], found["low"], found["high"], found["q"] <= SURELY)

    return [charts.Panel(title, [bar(row, metric) for row in rows]) for metric, title in PANELS.items()]


def _confusions(record: Row) -> Row:
    """Before, after, and the difference, over the same classes: where there are too many, those that are mistaken most."""
    sides = {name: found for name, found in record["confusion"].items() if found}
    names = sorted({name for found in sides.values() for name in found["class_names"]})
    whole = {side: _spread(found, names) for side, found in sides.items()}
    if not whole:
        return {"confusions": []}
    wrong = sum(_mistakes(table) for table in whole.values())
    kept = np.sort(np.argsort(-wrong, kind="stable")[:MOST_CELLS])
    shown = [names[place] for place in kept]
    parts = {side: table[np.ix_(kept, kept)] for side, table in whole.items()}
    titles = {"before": record["before"], "after": record["model"]}
    found = [
        (titles[side], rendering.picture(charts.confusion(parts[side], shown, difference=False), f"confusion {side}"))
        for side in ("before", "after")
        if side in parts
    ]
    if "before" in parts:
        apart = charts.confusion(parts["after"] - parts["before"], shown, difference=True)
        found.append(("difference", rendering.picture(apart, "confusion after − before")))
    return {"confusions": found, "cells_left_out": len(names) - len(shown)}


def _spread(found: Row, names: list[str]) -> Any:
    """Counts in another list of classes, which holds all of them."""
    table = np.zeros((len(names), len(names)), dtype=np.int64)
    places = [names.index(name) for name in found["class_names"]]
    table[np.ix_(places, places)] = np.asarray(found["counts"], dtype=np.int64).reshape(len(places), len(places))
    return table


def _mistakes(table: Any) -> Any:
    """How often each class is mistaken, or taken for (n,)."""
    wrong = table - np.diag(np.diag(table))
    return wrong.sum(axis=0) + wrong.sum(axis=1)


def _images(stores: Stores, record: Row) -> dict[str, list[Row]]:
    """Thumbnails of what improved and worsened, the first of each."""
    shown = {said: found["samples"][:MOST_IMAGES] for said, found in record["changes"].items()}
    known = corpora.known_samples(stores.db, ids=[row["sample_id"] for rows in shown.values() for row in rows])
    return {
        said: [{**row, "image": rendering.thumbnail(stores, known.get(row["sample_id"]))} for row in rows]
        for said, rows in shown.items()
    }
