"""The demo's campaign against many control arms: what one random draw of 200 labels leaves to luck.

The interval in the demo's report covers the images of the holdout, not which 200 images the control arm drew.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from harness import Check, finish
from rich.console import Console
from rich.progress import track

from flows import demo
from flows.control_plane import control_plane
from flows.corpus import embed_corpus, ingest_corpus
from flows.discovery import discover_failures
from flows.labeling import sync_labels
from flows.training import retrain_and_evaluate
from models.plans import DiscoverPlan, EmbedPlan, SyncPlan
from models.retraining import RetrainPlan
from storage import runs
from storage.stores import open_stores
from tasks import evaluating, scenarios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="3 draws instead of 20")
    parser.add_argument("--seed", type=int, default=1_000, help="first seed of the draws; the demo's own is 0")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checks = measure(Path(folder), draws=3 if chosen.quick else 20, seed=chosen.seed)
    finish(checks, as_json=chosen.json)


def measure(folder: Path, *, draws: int, seed: int) -> list[Check]:
    """Control arms are drawn before any label is in, as in the demo; then each is fitted and compared on the issue's slice."""
    own = demo.Demo(folder, budget=200, seed=0, label_studio=False, label_studio_url="")
    with demo.demo_environment(own), control_plane(folder / "prefect.log"):
        demo.unpack(folder)
        for name in demo.SPLITS:
            ingest_corpus.fn(demo.ingest_plan(folder, name))
        embed_corpus.fn(EmbedPlan(corpora=list(demo.SPLITS)))
        retrain_and_evaluate.fn(RetrainPlan(model="baseline", corpora=["labelled"]))
        issue = discover_failures.fn(DiscoverPlan(model="baseline", scenario="development", seed=0)).issue
        arms = [f"control-{place}" for place in range(draws)]
        for place, arm in enumerate(arms):
            demo.mine_arm(own._replace(seed=seed + place), issue, "control", name=arm)
        for _ in range(demo.ARMS["campaign"][1]):
            demo.mine_arm(own, issue, "campaign")
            sync_labels.fn(SyncPlan(campaigns=["campaign"]))  # the controls' labels would bar most of the pool
        sync_labels.fn()
        for arm in track(["campaign", *arms], "retraining", console=Console(stderr=True)):
            retrain_and_evaluate.fn(
                RetrainPlan(model=arm, corpora=["labelled"], campaigns=[arm], issue=issue, compare_with="baseline")
            )
        on_slice = scenarios.issue_scenario(issue)
        against = [evaluating.compare(arm, "campaign", on_slice, 2_000, seed) for arm in arms]
        with open_stores() as stores:
            found = [
                next(
                    delta
                    for delta in runs.deltas_of(stores.db, comparison_id=compared.comparison_id)
                    if (delta.class_name, delta.metric) == ("coat", "f1")
                )
                for compared in against
            ]
            return _checks([(delta.before, delta.after, delta.low) for delta in found])


def _checks(found: list[tuple[float, float, float]]) -> list[Check]:
    control, after, low = np.array(found).T
    return [
        Check("campaign: F1 of coat in the slice", float(after[0]), "F1"),
        Check(f"control, mean of {len(found)} draws", float(control.mean()), "F1", detail={"draws": control.tolist()}),
        Check("control, weakest draw", float(control.min()), "F1"),
        Check("control, strongest draw", float(control.max()), "F1"),
        Check("campaign − control, mean", float(after[0] - control.mean()), "F1"),
        Check("share of draws whose interval lies above 0", float((low > 0).mean()), "of draws", bar=0.95,
              ok=bool((low > 0).mean() >= 0.95)),
        Check("smallest lower bound", float(low.min()), "F1"),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
