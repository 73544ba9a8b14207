"""`themis publish`: runs, sweeps and reports pushed after the fact, in the shape of live tracking."""

import json
import sys
from pathlib import Path

import pytest
import wandb
from click.testing import CliRunner, Result
from mlflow.tracking import MlflowClient
from records import read_events, read_wandb
from tracked_folders import STEPS, make_config, make_row, make_run

from themis_ray.cli import main
from themis_ray.errors import ConfigError, RunFolderError, UnknownNameError
from themis_ray.reporting import publishing
from themis_ray.reporting.publishing import find_published, publish, report_artifacts
from themis_ray.tracking import WandbLogger, describe_run

REPORT_FILES = {
    "report.html": "<!doctype html><title>report</title>",
    "groups.csv": "env,teacher,iqm,iqm_low\nPendulum-v1,oracle,0.9,\nPendulum-v1,mistake,0.5,0.25\n",
    "comparisons.csv": "env,says\n",
    "table.tex": "% a table\n",
}


def make_sweep(path: Path, *, has_report: bool = True) -> Path:
    """A sweep of two finished trials, one that a scheduler stopped, and one that still runs."""
    for seed, is_finished in enumerate((True, True, False, False)):
        make_run(path / "pendulum" / "mistake" / f"s{seed}", f"seed={seed}", is_finished=is_finished)
    (path / "pendulum" / "mistake" / "s2" / "stopped.json").write_text('{"by": "asha"}')
    (path / "sweep.yaml").write_text("{}")
    if has_report:
        report = path / "report"
        report.mkdir()
        for name, text in REPORT_FILES.items():
            (report / name).write_text(text)
        listed = [*REPORT_FILES, "scores.png"]
        (report / "report.json").write_text(json.dumps({"written_by": "themis report", "files": listed}))
        (report / "stale.png").write_bytes(b"of an earlier report")
        (report / "scores.png").write_bytes((path / "pendulum/mistake/s0/plot.png").read_bytes())
    return path


def run_command(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["publish", *arguments])


def records(path: Path) -> list[Path]:
    return sorted(path.glob("**/wandb/offline-run-*/run-*.wandb"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    sweep = make_sweep(tmp_path_factory.mktemp("runs") / "smoke")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.delenv("WANDB_DATA_DIR", raising=False)
        result = run_command(str(sweep), "--project", "mine")
    assert result.exit_code == 0, result.output
    return sweep, result


def test_the_runs_of_a_sweep_are_compared_in_one_project(published: tuple[Path, Result]) -> None:
    runs = [read_wandb(path) for path in records(published[0] / "pendulum")]
    assert len(runs) == 3
    assert {one.run.project for one in runs} == {"mine"}
    assert {one.run.run_group for one in runs} == {"pendulum/mistake"}
    assert [one.run.display_name for one in runs] == [f"pendulum/mistake/s{seed}" for seed in range(3)]
    assert [one.config["seed"] for one in runs] == [0, 1, 2]
    assert all("smoke" in one.run.tags for one in runs)
    assert [list(one.run.tags)[-1] for one in runs] == ["smoke", "smoke", "stopped"]


def test_a_run_looks_as_if_it_had_been_tracked(published: tuple[Path, Result]) -> None:
    one = read_wandb(records(published[0] / "pendulum")[0])
    assert [row["num_env_steps"] for row in one.history] == list(STEPS)
    assert one.summary["final/true_return_mean"] == -150.0
    assert {"plot", "clips/trained_policy", "tables/preferences"} <= set(one.history[-1])
    assert {"run", "preferences", "explanations"} <= set(one.artifacts)


def test_a_report_is_a_run_of_its_own(published: tuple[Path, Result]) -> None:
    (path,) = records(published[0] / "report")
    one = read_wandb(path)
    assert (one.run.job_type, one.run.display_name, list(one.run.tags)) == (
        "report",
        "report smoke",
        ["report", "smoke"],
    )
    assert set(one.artifacts["report"]) == {*REPORT_FILES, "scores.png"}
    shown = one.history[-1]
    assert {"report", "charts/scores", "tables/groups", "tables/comparisons"} <= set(shown)
    assert shown["tables/groups"]["nrows"] == 2


def test_what_runs_still_is_left_out_and_said(published: tuple[Path, Result]) -> None:
    sweep, result = published
    assert f"left out: {sweep}/pendulum/mistake/s3: not finished" in result.output
    assert not records(sweep / "pendulum/mistake/s3")
    assert f"find {sweep} -type d -name 'offline-run-*' | xargs wandb sync" in result.output


def test_publishing_again_sends_no_line_twice(published: tuple[Path, Result]) -> None:
    run = published[0] / "pendulum" / "mistake" / "s0"
    (again,), _ = publish([run], "wandb", "mine")
    assert again.num_lines == 0
    first, second = (read_wandb(path) for path in records(run))
    assert first.run.run_id == second.run.run_id
    assert [row["num_env_steps"] for row in second.history] == [STEPS[-1]]  # the pictures, at the newest line


def test_explanations_join_a_run_that_was_tracked_live(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    live = WandbLogger(run, describe_run(run, make_config()), "themis")
    for step in STEPS:
        live.log(make_row(step))
    live.close({"true_return_mean": -150.0})
    (pushed,), _ = publish([run], "wandb")
    assert pushed.num_lines == 0
    first, second = (read_wandb(path) for path in records(run))
    assert first.run.run_id == second.run.run_id
    assert "explanations/reward-saliency" in second.history[-1]


def test_another_project_gets_every_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    pushed = [publish([run], "wandb", project)[0][0].num_lines for project in ("one", "other", "one")]
    assert pushed == [len(STEPS), len(STEPS), 0]


def test_mlflow_gets_all_of_it_in_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make_sweep(tmp_path / "smoke")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        result = run_command("smoke", "--to", "mlflow", "--project", "mine")
        assert result.exit_code == 0, result.output
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert sorted(run.info.run_name for run in runs) == [*(f"pendulum/mistake/s{i}" for i in range(3)), "report smoke"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    (report,) = [run for run in runs if run.data.tags["job_type"] == "report"]
    assert {file.path for file in client.list_artifacts(report.info.run_id)} == {"charts", "report", "tables"}
    history = client.get_metric_history(runs[-1].info.run_id, "true_return_mean")
    assert [metric.step for metric in history] == list(STEPS)
    assert sweep.is_dir()


def test_tensorboard_gets_event_files(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for _ in range(2):
        assert run_command(str(run), "--to", "tensorboard").exit_code == 0
    events = read_events(run / "tensorboard")
    assert set(events.scalars["true_return_mean"]) == set(STEPS)
    assert {"plot", "clips/trained_policy", "explanations/reward-saliency"} <= set(events.images)


def test_a_report_alone_can_be_pushed(tmp_path: Path) -> None:
    report = make_sweep(tmp_path / "smoke") / "report"
    assert find_published([report]) == ([], [report], [])
    artifacts = report_artifacts(report)
    assert artifacts.tables["groups"].rows == (
        ("Pendulum-v1", "oracle", 0.9, None),
        ("Pendulum-v1", "mistake", 0.5, 0.25),
    )
    assert artifacts.tables["comparisons"].rows == ()


def test_a_folder_with_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"):
        publish([tmp_path], "wandb")
    with pytest.raises(RunFolderError, match="is no folder"):
        publish([tmp_path / "none"], "wandb")
    with pytest.raises(UnknownNameError, match="Did you mean 'wandb'"):
        publish([tmp_path], "wandbb")


def test_a_broken_run_does_not_keep_the_others_back(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "smoke", has_report=False)
    broken = sweep / "pendulum/mistake/s0"
    (broken / "preferences/part-00000.parquet").write_bytes(b"PAR1 no more")
    pushed, left_out = publish([sweep], "tensorboard")
    assert [one.name for one in pushed] == ["pendulum/mistake/s1", "pendulum/mistake/s2"]
    assert any(one.path == broken and "part-00000.parquet" in one.reason for one in left_out)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("summary.json", '{"true_return_mean": ', "summary.json is broken"),
        ("summary.json", "[]", "summary.json is broken"),
        ("predicted_left.json", '{"a', "one of its files cannot be read (JSONDecodeError"),
        ("config.yaml", "seed: [", "config.yaml is no valid YAML"),
        ("metrics.jsonl", None, "metrics.jsonl cannot be read (Is a directory)"),
    ],
)
def test_a_run_with_a_torn_file_does_not_keep_the_others_back(
    tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    sweep = make_sweep(tmp_path / "smoke", has_report=False)
    torn = sweep / "pendulum/mistake/s0"
    (torn / name).unlink(missing_ok=True)
    if content is None:
        (torn / name).mkdir()
    else:
        (torn / name).write_text(content)
    pushed, left_out = publish([sweep], "tensorboard")
    assert [one.name for one in pushed] == ["pendulum/mistake/s1", "pendulum/mistake/s2"]
    assert any(one.path == torn and said in one.reason for one in left_out)


def test_a_table_without_a_line_does_not_keep_the_runs_back(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "smoke")
    (sweep / "report" / "groups.csv").write_text("")
    pushed, left_out = publish([sweep], "tensorboard")
    assert len(pushed) == 3
    assert any(one.path == sweep / "report" and "ValueError" in one.reason for one in left_out)


def test_wandb_that_is_disabled_leaves_everything_to_be_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    real = wandb.init
    with monkeypatch.context() as patch:
        # W&B reads its variables once in a process.
        patch.setattr(wandb, "init", lambda **options: real(**{**options, "mode": "disabled"}))
        result = run_command(str(run))
    assert result.exit_code == 0, result.output
    assert result.output == "run: nowhere, because WANDB_MODE is disabled\n"
    assert not (run / "wandb" / "num_env_steps.json").exists()
    (pushed,), _ = publish([run], "wandb")
    assert (pushed.num_lines, pushed.is_offline) == (len(STEPS), True)


def test_runs_are_counted_once_where_mlflow_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "smoke" / "a")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'smoke' / 'mlflow.db'}")
    for _ in range(2):
        pushed, left_out = publish([tmp_path / "smoke"], "mlflow")
        assert ([one.path.name for one in pushed], left_out) == (["a"], [])
    assert list((tmp_path / "smoke" / "mlartifacts").rglob("config.yaml"))


def test_a_tracker_that_refuses_ends_the_command_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")

    def refuse(*_: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(publishing, "make_tracker", refuse)
    result = run_command(str(run))
    assert result.exit_code == 2
    assert "could not be pushed to wandb (ConnectionError: no route to host). 0 of 1 were" in result.output
    assert result.output.count("\n") == 1


# ---------------------------------------------------------------- the dashboard


def test_a_dashboard_needs_a_key_and_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run_command("--dashboard")
    assert result.exit_code == 2
    assert "WANDB_MODE is offline" in result.output
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    result = run_command("--dashboard")
    assert result.exit_code == 2
    assert "there is no key" in result.output
    assert result.output.count("\n") == 1


def test_what_makes_no_sense_is_refused() -> None:
    assert "no folder was given" in run_command().output
    assert "--dashboard is W&B's" in run_command("x", "--to", "mlflow", "--dashboard").output


def test_a_missing_package_for_the_dashboard_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from themis_ray.reporting.dashboard import make_workspace

    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    monkeypatch.delitem(sys.modules, "wandb_workspaces", raising=False)
    with pytest.raises(ConfigError, match=r"themis-ray\[wandb-dashboard\]"):
        make_workspace("us", "themis")
