"""The dashboard in code: what would be saved at W&B shows figures that runs have."""

import json
from pathlib import Path
from typing import Any

import pytest
from tracked_folders import make_config

from themis_ray.reporting.dashboard import NAME, make_workspace
from themis_ray.tracking import METRICS, describe_run

SUMMARY_KEYS = {"final/true_return_mean", "final/queries_asked", "final/heldout_accuracy"}


@pytest.fixture(scope="module")
def section() -> Any:
    view = json.loads(make_workspace("us", "themis")._to_model().model_dump_json(by_alias=True))
    assert (view["entity"], view["project"], view["displayName"]) == ("us", "themis", NAME)
    return view["spec"]["section"]


def panels(section: Any, kind: str) -> list[Any]:
    found = [panel for part in section["panelBankConfig"]["sections"] for panel in part["panels"]]
    return [panel["config"] for panel in found if panel["viewType"] == kind]


def test_lines_show_metrics_against_env_steps(section: Any) -> None:
    lines = panels(section, "Run History Line Plot")
    shown = {name for line in lines for name in line["metrics"]}
    assert {"true_return_mean", "heldout_accuracy", "queries_asked"} <= shown <= set(METRICS)
    assert {line["xAxis"] for line in lines} == {"num_env_steps"}
    assert {(line["groupAgg"], line["groupArea"]) for line in lines} == {("mean", "stddev")}


def test_final_policies_are_compared_by_what_settings_hold(section: Any, tmp_path: Path) -> None:
    bars = panels(section, "Bar Chart")
    settings = describe_run(tmp_path, make_config()).settings
    for bar in bars:
        group, value, key = bar["groupBy"].split(".")
        assert value == "value"
        assert key in settings[group]
        assert bar["metrics"] == ["summary_metrics.final/true_return_mean"]
    assert [bar["groupBy"] for bar in bars][:2] == ["method.value.teacher", "method.value.sampler"]


def test_runs_are_those_that_train_grouped_by_group(section: Any) -> None:
    (runs,) = section["runSets"]
    assert [key["name"] for key in runs["grouping"]] == ["group"]
    text = json.dumps(runs["filters"])
    assert "jobType" in text
    assert '"train"' in text


def test_clips_and_preferences_have_a_panel(section: Any) -> None:
    (policies, plots) = panels(section, "Media Browser")
    assert policies["mediaKeys"] == ["clips/trained_policy"]
    assert plots["mediaKeys"] == ["plot"]
    assert "tables/preferences" in json.dumps(section)


def test_the_columns_of_the_table_of_runs_are_in_every_summary(section: Any) -> None:
    text = json.dumps(section)
    for key in SUMMARY_KEYS:
        assert key in text
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for key in SUMMARY_KEYS:
        assert f"| `{key.removeprefix('final/')}` |" in page
