"""One stage of a retraining on the demo's images, in a process of its own; prints what came of it as JSON.

DIPNET_ROOT=… python tests/benchmarks/gate_worker.py STAGE FOLDER
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parents[2]
sys.path.insert(0, str(HOUSE))

from flows import demo  # noqa: E402
from flows.corpus import embed_corpus, ingest_corpus  # noqa: E402
from flows.discovery import discover_failures  # noqa: E402
from flows.labeling import sync_labels  # noqa: E402
from flows.training import retrain_and_evaluate  # noqa: E402
from models.learning import DatasetVersion, ModelVersion  # noqa: E402
from models.plans import DiscoverPlan, EmbedPlan, SyncPlan  # noqa: E402
from models.retraining import FinetuneOptions, RetrainPlan, TrainerPlan  # noqa: E402
from storage import runs  # noqa: E402
from storage.stores import open_stores  # noqa: E402

SMALL = FinetuneOptions(backbone="resnet18", image_size=28, epochs=3, patience=0, batch_size=128)
WHOLE = FinetuneOptions(backbone="resnet18", image_size=32, epochs=15)


def prepare(folder: Path) -> dict[str, Any]:
    """Images become vectors, and a head is fitted on the labelled ones."""
    demo.unpack(folder)
    for name in demo.SPLITS:
        ingest_corpus.fn(demo.ingest_plan(folder, name))
    embed_corpus.fn(EmbedPlan(corpora=list(demo.SPLITS)))
    return head(folder, model="baseline")


def head(_folder: Path, *, model: str = "again") -> dict[str, Any]:
    """A head, under a name of its own, and all that is known of it."""
    plan = RetrainPlan(model=model, corpora=["labelled"], compare_with="none")
    found = retrain_and_evaluate.fn(plan)
    with open_stores() as stores:
        row = runs.get_model(stores.db, name=model)
        metrics = [stores.db.get_one(runs.Evaluation, number).metrics for number in found.evaluations.values()]
        dataset = stores.db.get_one(DatasetVersion, found.fitted.dataset_id)
        figures = hashlib.sha256(json.dumps(metrics, sort_keys=True).encode()).hexdigest()
        return {"dataset": dataset.content_hash, "weights": row.weights_sha256, "metrics": figures}


def campaign(folder: Path) -> dict[str, Any]:
    """The demo's issue, found and mined, and its labels."""
    chosen = demo.Demo(folder, budget=200, seed=0, label_studio=False, label_studio_url="")
    issue = discover_failures.fn(DiscoverPlan(model="baseline", scenario="development", seed=0)).issue
    for _ in range(demo.ARMS["campaign"][1]):
        demo.mine_arm(chosen, issue, "campaign")
        sync_labels.fn(SyncPlan(campaigns=["campaign"]))
    return {"issue": issue}


def pixels(folder: Path) -> dict[str, Any]:
    """A network on pixels before and after the campaign, and the verdict."""
    issue = campaign(folder)["issue"]
    trainer = TrainerPlan(name="finetune", finetune=WHOLE)
    retrain_and_evaluate.fn(RetrainPlan(model="pixels", corpora=["labelled"], trainer=trainer, compare_with="none"))
    after = RetrainPlan(
        model="pixels",
        corpora=["labelled"],
        campaigns=["campaign"],
        trainer=trainer,
        compare_with="pixels@1",
        issue=issue,
    )
    found = retrain_and_evaluate.fn(after)
    (judged,) = found.gates
    with open_stores() as stores:
        gate = stores.db.get_one(runs.Gate, judged.gate_id)
        return {"verdict": gate.verdict.value, "reasons": gate.reasons, "findings": gate.findings}


def small(_folder: Path) -> dict[str, Any]:
    """A short training that may be killed."""
    trainer = TrainerPlan(name="finetune", finetune=SMALL)
    retrain_and_evaluate.fn(RetrainPlan(model="small", corpora=["labelled"], trainer=trainer, compare_with="none"))
    with open_stores() as stores:
        found = [row for row in runs.list_models(stores.db) if row.name == "small"]
        assert all(isinstance(row, ModelVersion) for row in found)
        return {"models": len(found), "weights": found[0].weights_sha256}


STAGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "prepare": prepare,
    "head": head,
    "pixels": pixels,
    "small": small,
}

if __name__ == "__main__":
    print(json.dumps(STAGES[sys.argv[1]](Path(sys.argv[2]))))
