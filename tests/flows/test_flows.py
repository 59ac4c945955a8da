"""The flows as real Prefect runs: recorded, repeatable, and with forms that a person can fill in."""

import subprocess
import sys
from pathlib import Path

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.importtools import load_script_as_module

from flows import serving
from flows.campaign import continue_campaigns
from flows.labeling import sync_labels
from flows.training import retrain_and_evaluate

ALL = [*serving.ON_DEMAND, continue_campaigns, sync_labels, retrain_and_evaluate]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("flow", ALL, ids=lambda flow: flow.name)
def test_every_form_explains_every_field(flow: Flow[..., object]) -> None:
    schema = parameter_schema(flow.fn)
    assert schema.properties["plan"]["description"]
    definitions = [name for name in schema.definitions if name.endswith(("Plan", "Policy", "Filter", "Rule"))]
    assert definitions
    for name in definitions:
        for field, described in schema.definitions[name]["properties"].items():
            assert described.get("description"), f"{flow.name}: {name}.{field} has no description"
            assert "anyOf" not in described, f"{flow.name}: {name}.{field} is a union, which makes a poor form"


def test_every_flow_is_served_under_its_design_name() -> None:
    assert {deployment.flow_name for deployment in serving.deployments()} == {
        "ingest-corpus", "embed-corpus", "discover-failures", "run-campaign", "continue-campaigns", "sync-labels",
        "retrain-and-evaluate",
    }  # fmt: skip
    assert all(deployment.entrypoint.startswith("flows.") for deployment in serving.deployments())


def test_the_deployment_file_names_flows_that_exist() -> None:
    import importlib

    import yaml

    listed = yaml.safe_load((ROOT / "deploy" / "prefect.yaml").read_text())["deployments"]
    names = set()
    for entry in listed:
        module, _, function = entry["entrypoint"].rpartition(".")
        names.add(getattr(importlib.import_module(module), function).name)
    assert names == {flow.name for flow in ALL}


def test_the_file_form_of_an_entry_point_loads_too() -> None:
    module = load_script_as_module(str(ROOT / "flows" / "campaign.py"))
    assert module.run_campaign.name == "run-campaign"


def test_a_poll_for_answers_loads_nothing_that_learns() -> None:
    heavy = {"torch", "sklearn", "duckdb", "pyarrow", "pandas"}  # half a gigabyte and ten seconds, every few minutes
    look = f"import sys, flows.labeling; print(*sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", look], cwd=ROOT, check=True, capture_output=True, text=True)
    assert loaded.stdout.split() == []
