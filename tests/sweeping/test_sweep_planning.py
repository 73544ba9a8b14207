"""What is planned and decided before and between trials: estimates, schedulers, suggestions, takeovers."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from tiny_sweep import BASE, write_sweep

from themis_ray.cli import main
from themis_ray.errors import ConfigError
from themis_ray.sweeping import SweepFolder, estimate, examples, expand, load_sweep
from themis_ray.sweeping.optuna_search import OptunaSearcher, Suggestion, read_suggestions
from themis_ray.sweeping.process import COUNTERS, _finish_takeover, _prepare_takeover, _stopper
from themis_ray.sweeping.run import _clamp, _run_optuna, _scheduler
from themis_ray.tracking import METRICS, RunFolder

ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------- planning


def test_a_dry_run_prints_trials_resources_and_time_and_starts_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(
        main, ["sweep", str(ROOT / "tune_configs" / "smoke.yaml"), "--dry-run", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split() == ["trial", "env", "steps", "labels", "CPUs", "GPUs", "time"]
    assert lines[1].split()[:5] == ["pendulum/oracle/uniform/s0", "2000", "40", "1", "0"]
    assert "4 trials" in lines[-1]
    assert "about" in lines[-1]
    assert not out.exists()


def test_a_dry_run_tells_how_often_is_explored() -> None:
    path = ROOT / "tune_configs" / "label_budget.yaml"
    result = CliRunner().invoke(main, ["sweep", str(path), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "exploration is done 3 times, for 15 trials" in result.output


def test_an_estimate_shares_the_cores_and_learns_from_finished_runs(tmp_path: Path) -> None:
    trials = expand(load_sweep(write_sweep(tmp_path, seeds=4)))
    narrow, wide = estimate(trials, 1.5), estimate(trials, 3.0)
    assert (narrow.num_at_once, wide.num_at_once) == (1, 2)
    assert narrow.total_s == pytest.approx(2 * wide.total_s)
    assert estimate(trials, 100, max_concurrent=3).num_at_once == 3
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "summary.json").write_text(
        '{"env_id": "Pendulum-v1", "algorithm": "sac", "env_steps_per_s": 0.1}'
    )
    assert estimate(trials, 1.5, runs=tmp_path / "runs").trial_s[0] > 6000


def test_optuna_is_planned_with_examples(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, search="optuna", num_samples=3, space={"feedback.budget": {"randint": [4, 400]}})
    result = CliRunner().invoke(main, ["sweep", str(path), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Optuna chooses")
    with pytest.raises(ConfigError):
        load_sweep(path, ["variants={a: {feedback.budget: 1}}"])
    few = {"feedback.sampler": ["uniform", "entropy"]}
    path = write_sweep(tmp_path, search="optuna", num_samples=10, space=few)
    result = CliRunner().invoke(main, ["sweep", str(path), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "2 trials" in result.output, "lists are choices, and there are two to show"


def test_optuna_may_meet_values_that_make_no_experiment(tmp_path: Path) -> None:
    some = {"feedback.segment_length": [10, 20, 500]}  # of episodes of 50 steps
    found = examples(load_sweep(write_sweep(tmp_path, search="optuna", space=some)))
    assert sorted(trial.config.feedback.segment_length for trial in found) == [10, 20]
    none = {"feedback.segment_length": {"randint": [51, 500]}}
    with pytest.raises(ConfigError, match=r"pendulum/segment_length-.* longer than an episode"):
        examples(load_sweep(write_sweep(tmp_path, search="optuna", space=none)))


def test_optuna_takes_a_base_that_makes_no_experiment_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    monkeypatch.setattr("themis_ray.sweeping.run._fit", lambda *arguments: fits.append(arguments))
    base = {**BASE, "exploration": {"num_seed_steps": 100, "num_env_steps": 900}}
    space = {"num_env_steps": [1500, 2000]}
    for name, kind in (("plain", "none"), ("rungs", "asha")):
        scheduler = {"kind": kind}
        settings = load_sweep(write_sweep(tmp_path, base=base, search="optuna", space=space, scheduler=scheduler))
        assert _run_optuna(settings, SweepFolder.create(tmp_path / name, settings), lambda _: None) == []
    plain, asha = (arguments[5] for arguments in fits)
    assert plain is None
    assert asha._max_t == 4000


def test_a_plan_says_what_does_not_fit_and_leaves_out_what_is_over(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, seeds=2)
    wide = ["resources.num_env_runners=200", "resources.main_process_custom_resources={nowhere: 1}"]
    result = CliRunner().invoke(main, ["sweep", str(path), *wide, "--dry-run"])
    assert "2 of these trials do not fit this machine" in result.output
    assert "1 nowhere" in result.output
    folder = SweepFolder.create(tmp_path / "out", load_sweep(path))
    folder.mark_stopped("pendulum/s0", "asha")
    plan = ["sweep", "--resume", str(folder.path), "--dry-run"]
    result = CliRunner().invoke(main, plan)
    assert "1 trials (1 more are over)" in result.output
    assert "pendulum/s0" not in result.output
    folder.mark_stopped("pendulum/s1", "asha")
    assert "All 2 trials" in CliRunner().invoke(main, plan).output


# ---------------------------------------------------------------- schedulers


def test_what_pbt_changes_stays_in_its_range() -> None:
    mutations = {"a": {"uniform": [0.9, 0.999]}, "b": {"randint": [1, 4]}, "c": [10, 20], "d": {"choice": [1]}}
    assert _clamp(mutations, {"a": 1.14, "b": 5, "c": 20, "d": 1, "trial": {}}) == {
        **{"a": 0.999, "b": 3, "c": 20, "d": 1},
        "trial": {},
    }
    assert _clamp(mutations, {"a": 0.1, "b": 0, "c": 10, "d": 1})["a"] == 0.9


def test_asha_leaves_a_trial_alone_that_has_taken_all_its_steps(tmp_path: Path) -> None:
    scheduler = {"kind": "asha", "grace_num_env_steps": 75, "reduction_factor": 2}  # rungs at 75, 150, 300, 600, 1200
    asha = _scheduler(load_sweep(write_sweep(tmp_path, scheduler=scheduler)), 600)
    asha.set_search_properties("true_return_mean", "max")
    trials = [SimpleNamespace(trial_id=str(i), config={"trial": {"num_env_steps": 600}}) for i in range(4)]
    actions = {}
    for rank, trial in enumerate(trials):
        asha.on_trial_add(None, trial)
        for steps in (300, 600):
            row = {"num_env_steps": steps, "true_return_mean": -float(rank)}
            actions[rank, steps] = asha.on_trial_result(None, trial, row)
    assert actions[3, 300] == "STOP"
    assert {actions[rank, 600] for rank in range(4)} == {"CONTINUE"}


# ---------------------------------------------------------------- Optuna


def searcher(make, earlier=(), num_samples=6, space=None) -> OptunaSearcher:
    space = space or {"x": {"uniform": [0.0, 1.0]}}
    return OptunaSearcher(space, num_samples, 0, "true_return_mean", "max", list(earlier), make)


def test_optuna_is_told_a_return_of_zero() -> None:
    found = searcher(lambda name, values: {"values": values})
    found.suggest("a")
    found.on_trial_complete("a", {"true_return_mean": 0.0})
    found.suggest("b")
    found.on_trial_complete("b", {})
    assert [(trial.state.name, trial.value) for trial in found._study.trials] == [("COMPLETE", 0.0), ("FAIL", None)]


def test_optuna_says_something_new_when_it_goes_on() -> None:
    def pick(name, values):
        return values["x"]

    first = [searcher(pick).suggest(str(i)) for i in range(1)]
    again = searcher(pick, [Suggestion("one", {"x": first[0]}, 1.0)])
    assert again.suggest("b") != first[0]


def test_a_suggestion_that_was_written_in_part_leaves_the_others_whole(tmp_path: Path) -> None:
    folder = SweepFolder.create(tmp_path / "out", load_sweep(write_sweep(tmp_path)))
    folder.add_suggestion("a", {"x": 1})
    with folder.suggestions_path.open("a") as file:
        file.write('{"name": "b", "val')
    folder.add_suggestion("c", {"x": 2})
    found = read_suggestions(folder.suggestions_path, lambda _: None)
    assert [(suggestion.name, suggestion.values) for suggestion in found] == [("a", {"x": 1}), ("c", {"x": 2})]


def test_values_that_make_no_experiment_are_no_trial() -> None:
    refused = []

    def make(name, values):
        if values["x"] < 0.7:
            refused.append(values["x"])
            raise ConfigError("too small")
        return values["x"]

    found = searcher(make)
    assert all(found.suggest(str(i)) >= 0.7 for i in range(3))
    assert refused

    def make_nothing(name, values):
        raise ConfigError("too small")

    with pytest.raises(ConfigError, match="too small"):
        searcher(make_nothing).suggest("a")


# ---------------------------------------------------------------- trials


@pytest.mark.parametrize("name", sorted(COUNTERS))
def test_what_only_grows_ends_a_trial_when_it_is_large(name: str) -> None:
    assert name in METRICS
    for mode in ("min", "max"):
        should_stop = _stopper({name: 50}, mode)
        assert [should_stop({name: value}) for value in (2, 50)] == [False, True]
    assert _stopper({"fit_loss": 0.5}, "min")({"fit_loss": 0.1})


# ---------------------------------------------------------------- taking over


def test_a_takeover_that_is_interrupted_is_finished_later(tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "own"
    for folder, word in ((source, "theirs"), (path, "mine")):
        (folder / "checkpoints" / word).mkdir(parents=True)
        (folder / "preferences").mkdir()
        (folder / "preferences" / word).write_text(word)
    (path / "queries").mkdir()
    (path / "queries" / "mine").write_text("mine")
    (path / "metrics.jsonl").write_text('{"num_env_steps": 100}\n{"num_env_steps": 900}\n')
    (source / "source.json").write_text(json.dumps({"path": "elsewhere", "num_env_steps": 500}))
    (trial,) = expand(load_sweep(write_sweep(tmp_path)))
    _prepare_takeover(path, source, trial.config)
    assert (path / "checkpoints" / "mine").is_dir(), "nothing is lost before all is there"

    # Killed in the middle: one part is in its place, the others are not.
    shutil.rmtree(path / "preferences")
    (path / ".takeover" / "preferences").rename(path / "preferences")
    _finish_takeover(path)
    assert [item.name for item in (path / "checkpoints").iterdir()] == ["theirs"]
    assert [item.name for item in (path / "preferences").iterdir()] == ["theirs"]
    assert not (path / "queries").exists()
    assert [row["num_env_steps"] for row in RunFolder(path).read_metrics()] == [100]
    assert not (path / ".takeover").exists()
    assert json.loads((path / "takeovers.jsonl").read_text())["from"] == "elsewhere"

    # Killed while it was copied: as if nothing had been.
    _prepare_takeover(path, source, trial.config)
    (path / ".takeover" / "source.json").unlink()
    _finish_takeover(path)
    assert not (path / ".takeover").exists()
    assert len((path / "takeovers.jsonl").read_text().splitlines()) == 1
