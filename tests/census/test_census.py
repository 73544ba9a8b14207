"""The list of environments, what is chosen for one, and the proof that all of it works."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from click.testing import CliRunner
from gymnasium import spaces

from themis_ray.census import (
    CHECKS,
    MARKER,
    census_page,
    check_env,
    describe_env,
    explain_setup,
    open_results,
    run_checks,
    status_of,
    summarise,
)
from themis_ray.cli import main
from themis_ray.config import load_config
from themis_ray.envs import FAMILIES, find_family, list_envs
from themis_ray.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
HERE = __name__
RESULT = {
    "id": "CartPole-v1",
    "family": "classic",
    "observation": "vector 5",
    "action": "Discrete 2",
    "horizon": 500,
    "is_fixed_horizon": True,
    "extra": None,
    "error": None,
    "failed_check": None,
    "wall_s": 4.0,
}


class Unseeded(gym.Env):
    """Draws from a generator that no seed reaches."""

    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.steps = 0

    def observe(self):
        return np.random.default_rng().normal(size=2).clip(-9, 9).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        return self.observe(), 0.0, self.steps >= 20, False, {}


class Leaves(Unseeded):
    """Ends its process, as a simulator that crashes does."""

    def reset(self, *, seed=None, options=None):
        import os

        os._exit(3)


def envs(*arguments: str):
    return CliRunner().invoke(main, ["envs", *arguments])


def test_a_row_tells_what_an_environment_is_like():
    assert describe_env("CartPole-v1") == {key: RESULT[key] for key in RESULT if key not in ("failed_check", "wall_s")}
    assert describe_env("ALE/Pong-v5")["observation"] == "image 84x84x4"
    assert describe_env("HalfCheetah-v5")["action"] == "Box 6"
    broken = describe_env("Pusher-v4")
    assert broken["observation"] is None
    assert "Pusher-v4" in broken["error"]


def test_the_list_as_json_and_as_a_table():
    rows = json.loads(envs("--family", "classic", "--json", "--jobs", "1").stdout)
    assert [row["id"] for row in rows] == list_envs("classic")
    assert all(row["error"] is None and row["horizon"] for row in rows)
    assert "CartPole-v1" in envs("--family", "classic", "--jobs", "1").stdout
    wrong = envs("--family", "clasic")
    assert wrong.exit_code == 2
    assert "Did you mean 'classic'" in wrong.output
    assert envs("--jobs", "0", "--family", "classic").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--family", "classic", "show", "Pendulum-v1"), "--family before show"),
        (("--json", "show", "Pendulum-v1"), "--json before show"),
        (("--jobs", "2", "check", "--ids", "Pendulum-v1"), "--jobs before check"),
        (("check", "--ids", "Pendulum-v1", "--family", "toy_text"), "--ids Pendulum-v1 and --family toy_text"),
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments: tuple[str, ...], told: str):
    refused = envs(*arguments)
    assert refused.exit_code == 2
    assert told in refused.output


def test_show_names_every_choice_its_reason_and_its_setting():
    choices = {choice.what: choice for choice in explain_setup(load_config(None, ["env.id=ALE/Pong-v5"]))}
    assert choices["frame stack"].chosen == "4"
    assert choices["learner"].chosen == "ppo"
    assert choices["horizon"].chosen == "27000 env steps"
    assert all(choice.reason and "." in choice.setting for choice in choices.values())
    overridden = explain_setup(
        load_config(
            None, ["env.id=Pendulum-v1", "env.frame_stack=2", "env.horizon=50", "env.normalize_observations=true"]
        )
    )
    given = {choice.what: choice.reason for choice in overridden}
    assert given["frame stack"] == given["horizon"] == given["observation normalisation"] == "as given"
    shown = json.loads(envs("show", "Pendulum-v1", "--json").stdout)
    assert {row["what"]: row["chosen"] for row in shown}["learner"] == "sac"
    assert "sac" in envs("show", "Pendulum-v1").stdout
    assert envs("show", "Pendulumm-v1").exit_code == 2


def test_every_setting_that_is_shown_exists():
    fields = load_config(None, ["env.id=Pendulum-v1"]).model_dump()
    for choice in explain_setup(load_config(None, ["env.id=CartPole-v1"])):
        group, name = choice.setting.split(".")
        assert name in fields[group]


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_the_check_proves_finds_faults_survives_a_crash_and_goes_on(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    env_ids = ["MiniGrid-Empty-5x5-v0", f"{HERE}:Leaves", f"{HERE}:Unseeded"]
    results = {result["id"]: result for result in run_checks(env_ids, 1, path)}
    assert results["MiniGrid-Empty-5x5-v0"]["failed_check"] is None
    assert results[f"{HERE}:Unseeded"]["failed_check"] == "episode"
    assert "differs the second time" in results[f"{HERE}:Unseeded"]["error"]
    assert "exit code 3" in results[f"{HERE}:Leaves"]["error"]
    assert open_results(path, is_resumed=True) == results
    done = envs("check", "--ids", ",".join(env_ids), "--out", str(path), "--resume", "--page", str(tmp_path / "p.md"))
    assert done.exit_code == 1
    assert "differs the second time" in done.output
    assert "`MiniGrid-Empty-5x5-v0`" in (tmp_path / "p.md").read_text()
    kept = envs("check", "--ids", "CartPole-v1", "--out", str(path))
    assert kept.exit_code == 2
    assert "--resume" in kept.output
    assert open_results(path, is_resumed=True) == results


def test_half_a_line_is_checked_again_and_a_damaged_file_is_refused(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(RESULT) + '\n{"id": "Pend')
    assert list(open_results(path, is_resumed=True)) == ["CartPole-v1"]
    assert path.read_text() == json.dumps(RESULT) + "\n"
    for damaged in (b"nonsense\n", b'{"id": "CartPole-v1"}\n', b"3\n", b"\xff\xfe\n"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            open_results(path, is_resumed=True)


def test_places_that_cannot_be_written_are_told_before_the_checks(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("themis_ray.cli.environments.run_checks", None)
    (tmp_path / "file").write_text("")
    out = tmp_path / "results.jsonl"
    for options in (("--out", tmp_path / "file" / "x"), ("--out", out, "--page", "/proc/page.md")):
        refused = envs("check", "--ids", "CartPole-v1", *map(str, options))
        assert refused.exit_code == 2
        assert f"{options[-2]} {options[-1]} cannot be written" in " ".join(refused.output.split())
    assert "is a folder" in envs("check", "--ids", "CartPole-v1", "--out", str(tmp_path)).output
    assert not out.exists()


def test_text_in_brackets_is_shown_as_it_is(tmp_path: Path, monkeypatch):
    row = dict.fromkeys(RESULT) | {"id": "LunarLander-v3", "error": 'pip install "gymnasium[box2d]", not [/dev/dri]'}
    monkeypatch.setattr("themis_ray.cli.environments.list_rows", lambda ids, num_jobs: iter([row]))
    listed = envs("--family", "box2d", "--jobs", "1")
    assert listed.exit_code == 0, listed.exception
    assert "[box2d]" in listed.stdout
    failed = row | {"failed_check": "clip", "wall_s": 1.0}
    monkeypatch.setattr("themis_ray.cli.environments.run_checks", lambda ids, num_jobs, path: iter([failed]))
    checked = envs("check", "--ids", row["id"], "--out", str(tmp_path / "results.jsonl"))
    assert checked.exit_code == 1, checked.exception
    assert checked.output.count("[/dev/dri]") == 2
    wrapped = envs("show", "Pendulum-v1", "env.wrappers=[gymnasium.wrappers:RecordEpisodeStatistics]")
    assert wrapped.exit_code == 0, wrapped.exception


def test_known_failures_are_told_from_others():
    known = "intersection-multi-agent-v1"
    failed = RESULT | {"id": known, "failed_check": "clip", "error": "x"}
    other = RESULT | {"id": "Pendulum-v1", "failed_check": CHECKS[1], "error": "y"}
    assert [status_of(row) for row in (RESULT, failed, other)] == ["passed", "known", "failed"]
    (summary,) = summarise([RESULT, failed, other])
    assert (summary["checked"], summary["passed"], summary["known"], summary["failed"]) == (3, 1, 1, 1)
    page = census_page([RESULT, failed, other], {"gymnasium": "1.2.2"})
    assert "gymnasium 1.2.2" in page
    assert f"| `{known}` | clip | pays every agent" in page
    assert "| `Pendulum-v1` | episode | y |" in page


def test_an_environment_that_cannot_be_made_fails_at_once():
    result = check_env("Pusher-v4")
    assert result["failed_check"] == "make"


def committed() -> list[dict]:
    return [json.loads(line) for line in (ROOT / "docs" / "environments.jsonl").read_text().splitlines()]


def test_the_page_is_what_the_committed_results_say():
    _, marker, page = (ROOT / "docs" / "environments.md").read_text().partition(MARKER)
    assert marker
    constraints = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    packages = {name: constraints[name] for name in ("gymnasium", "ale-py", "minigrid", "mujoco", "Box2D")}
    written = page.strip("\n")
    assert written == census_page(committed(), {name.lower(): number for name, number in packages.items()}).strip("\n")


def test_the_committed_results_are_those_of_today():
    """Stale: an id was added or taken away, or an environment looks different. Run `themis envs check` again."""
    results = {result["id"]: result for result in committed()}
    default = {row.name for row in FAMILIES.values() if row.extra is None}
    assert set(results) == {env_id for env_id in list_envs() if find_family(env_id).name in default}
    for env_id in list(results)[::40]:
        row = describe_env(env_id)
        assert {key: results[env_id][key] for key in row} == row
    states = [status_of(result) for result in results.values()]
    assert states.count("failed") == 0
    assert states.count("passed") >= 0.95 * len(states)
