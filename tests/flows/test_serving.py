"""When a retraining starts by itself: the schedule and the automation as a Prefect server stores them."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client

from flows import serving
from models.errors import BadSettings
from models.retraining import RetrainPlan

ROOT = Path(__file__).parents[2]
PLAN = {"model": "nightly", "campaigns": ["*"], "issue": "*"}


def stored(cron: str) -> tuple[list[tuple[str, Any]], list[Any]]:
    """The schedules and automations of the retraining, once it is deployed."""
    (deployment,) = [one for one in serving.deployments(cron) if one.flow_name == "retrain-and-evaluate"]
    number = deployment.apply()
    with get_client(sync_client=True) as client:
        found = client.read_deployment(number)
        response = client._client.get(f"/automations/related-to/prefect.deployment.{number}")
        return [(one.schedule.cron, one.parameters) for one in found.schedules if one.active], response.json()  # type: ignore[union-attr]


def test_a_retraining_runs_at_night_and_when_labels_are_in(prefect_server: None) -> None:
    for _ in range(2):  # deployed again, there is still one of each
        schedules, automations = stored("30 4 * * mon-fri")
        assert schedules == [("30 4 * * mon-fri", {"plan": PLAN})]
        (automation,) = automations
        trigger, (action,) = automation["trigger"], automation["actions"]
        assert (trigger["expect"], trigger["posture"]) == (["dipnet.batch.completed"], "Reactive")
        assert trigger["match"] == {"prefect.resource.id": "dipnet.batch.*"}
        assert (trigger["threshold"], timedelta(seconds=trigger["within"])) == (1, serving.GATHER)
        assert action["type"] == "run-deployment"
        assert action["parameters"] == {"plan": PLAN}
        assert timedelta(seconds=action["schedule_after"]) == serving.GATHER
    assert stored("")[0] == []  # off, though Prefect keeps what was deployed before


def test_what_starts_by_itself_is_a_plan_that_can_be_run() -> None:
    assert RetrainPlan.model_validate(serving.parameters()["plan"]) == serving.NIGHTLY


@pytest.mark.parametrize("cron", ["61 3 * * *", "0 3 * * noday"])
def test_a_cron_line_that_means_nothing_is_refused_before_anything_is_served(cron: str) -> None:
    with pytest.raises(BadSettings, match="DIPNET_RETRAIN_CRON"):
        serving.deployments(cron)


def test_the_deployment_file_says_the_same() -> None:
    from prefect.cli.deploy._triggers import _initialize_deployment_triggers

    listed = yaml.safe_load((ROOT / "deploy" / "prefect.yaml").read_text())["deployments"]
    (entry,) = [one for one in listed if one["entrypoint"] == "flows.training.retrain_and_evaluate"]
    (schedule,) = entry["schedules"]
    assert (schedule["cron"], schedule["parameters"]) == ("0 3 * * *", {"plan": PLAN})
    (trigger,) = _initialize_deployment_triggers("dipnet", entry["triggers"])
    ours = serving.on_labels()
    for name in ("name", "expect", "match", "within", "schedule_after", "threshold", "parameters"):
        assert getattr(trigger, name) == getattr(ours, name), name
