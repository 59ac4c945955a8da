"""The flows as real Prefect runs: recorded, repeatable, retried only where that can help."""

from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterId

from flows.campaign import run_campaign
from flows.corpus import embed_corpus, ingest_corpus
from flows.labeling import sync_labels
from flows.training import retrain_and_evaluate
from models.errors import BadInput
from models.plans import CampaignPlan, EmbedPlan, IngestPlan, SelectionPolicy, SyncPlan
from models.retraining import RetrainPlan
from tasks import searching


def test_a_campaign_runs_in_prefect_and_twice_changes_nothing(
    prefect_server: None, draw: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest_corpus(IngestPlan(corpus="pool", prefix=str(draw("pool", 30))))
    embedded = embed_corpus(EmbedPlan(corpora=["pool"]))
    assert (embedded[0].vectors, embedded[0].shards_done) == (30, 1)
    searching.new_issue("i", class_name="bar", where="", description="")
    searching.add_exemplars("i", [tmp_path / "images" / "pool" / "0003.png"], positive=True)
    (tmp_path / "truth.csv").write_text("sample_id,class_name\n")
    monkeypatch.setenv("DIPNET_ORACLE_TRUTH", str(tmp_path / "truth.csv"))
    wanted = CampaignPlan(
        campaign="c", issue="i", corpora=["pool"], policy=SelectionPolicy(budget=5), class_names=["bar", "square"]
    )
    first = run_campaign(wanted)
    assert first.sent is not None
    assert first.sent.sent == 5
    assert run_campaign(wanted) == first
    assert sync_labels(SyncPlan())[0].complete
    assert sync_labels(SyncPlan()) == []


def test_bad_input_fails_the_run_without_a_retry(prefect_server: None) -> None:
    state = ingest_corpus(IngestPlan(corpus="pool", prefix="nowhere"), return_state=True)
    assert state.is_failed()
    with get_client(sync_client=True) as client:
        run = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        )[0]
        assert run.total_run_time.total_seconds() < 9  # a retry waits for ten
    with pytest.raises(BadInput, match="does not exist"):
        state.result()


def test_a_retraining_shows_its_metrics_deltas_findings_and_verdict_once(
    prefect_server: None, draw: Callable[..., Path]
) -> None:
    for seed, (name, split) in enumerate([("train", "train"), ("held", "holdout")]):
        plan = {"corpus": name, "prefix": str(draw(name, 16, seed=seed)), "split": split, "label_column": "class_name"}
        ingest_corpus(IngestPlan.model_validate(plan))
    embed_corpus(EmbedPlan(corpora=["train", "held"]))
    retrain_and_evaluate(RetrainPlan(model="shown", resamples=200))
    wanted = RetrainPlan(model="shown", seed=1, resamples=200)
    found = retrain_and_evaluate(wanted)
    assert found.compared_with == "shown@1"

    def artifacts() -> dict[str, list[str]]:
        with get_client(sync_client=True) as client:
            wanted = ArtifactFilter(key=ArtifactFilterKey(like_="model-shown-%"))
            kept = client.read_artifacts(artifact_filter=wanted)
        return {str(one.key): [str(other.data) for other in kept if other.key == one.key] for one in kept}

    first = artifacts()
    counts = {"metrics": 2, "deltas": 1, "findings": 1, "verdict": 2}
    assert {name: len(first[f"model-shown-{name}"]) for name in counts} == counts
    (picture,) = first["model-shown-picture"]
    assert picture.startswith("data:image/png;base64,") and len(picture) < 100_000
    verdict = next(text for text in first["model-shown-verdict"] if "shown@2" in text)
    assert found.gates[0].reasons[0] in verdict
    assert found.report in verdict
    assert Path(found.report.removeprefix("file://")).is_file()
    assert retrain_and_evaluate(wanted).unchanged == "nothing changed since shown@2"
    assert artifacts() == first
