"""Run folders into cells: what is read, what is left out, what tells methods apart, and what a score is against."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import RANDOM, TRUE, make_run

from themis_ray.errors import RunFolderError
from themis_ray.reporting import find_runs
from themis_ray.reporting.groups import Groups, group_runs


def groups_of(path: Path) -> Groups:
    return group_runs(find_runs([path])[0])


def names(groups: Groups) -> list[str]:
    return [method.name for method in groups.methods]


# ---------------------------------------------------------------- reading


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", 0.5, ["teacher.name=mistake", "feedback.sampler=entropy", "seed=3"])
    (run,), left_out = find_runs([path])
    assert not left_out
    assert (run.teacher, run.sampler, run.seed, run.env_id) == ("mistake", "entropy", 3, "Pendulum-v1")
    assert run.learns_reward
    assert run.true_return == pytest.approx((RANDOM["Pendulum-v1"] + TRUE["Pendulum-v1"]) / 2)
    assert run.random_return == RANDOM["Pendulum-v1"]
    # The first line knows no return.
    assert len(run.env_steps) == len(run.returns) == len(run.queries) == 19
    assert (np.diff(run.env_steps) > 0).all()


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    make_run(tmp_path / "sweep" / "deep" / "er" / "a", 0.5, ["seed=0"])
    make_run(tmp_path / "sweep" / "b", 0.5, ["seed=1"])
    # A checkpoint may hold whatever it likes.
    shutil.copytree(tmp_path / "sweep" / "b", tmp_path / "sweep" / "b" / "checkpoints" / "old")
    runs, _ = find_runs([tmp_path, tmp_path / "sweep", tmp_path / "sweep" / "b"])
    assert sorted(run.seed for run in runs) == [0, 1]


def test_another_programs_config_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: sweep\n")
    make_run(tmp_path / "a", 0.5, ["seed=0"])
    runs, left_out = find_runs([tmp_path])
    assert len(runs) == 1
    assert not left_out


def test_broken_and_unfinished_runs_are_listed(tmp_path: Path) -> None:
    make_run(tmp_path / "good", 0.5, ["seed=0"])
    make_run(tmp_path / "unfinished", 0.5, ["seed=1", "num_env_steps=8000"], is_finished=False)
    (make_run(tmp_path / "no-summary", 0.5, ["seed=2"]) / "summary.json").write_text("{")
    (make_run(tmp_path / "no-return", 0.5, ["seed=3"]) / "summary.json").write_text('{"true_return_mean": null}')
    (make_run(tmp_path / "no-config", 0.5, ["seed=4"]) / "config.yaml").write_text("env: [")
    (make_run(tmp_path / "no-metrics", 0.5, ["seed=5"]) / "metrics.jsonl").write_text("what\n{}\n")
    (make_run(tmp_path / "no-env", 0.5, ["seed=6"]) / "config.yaml").write_text("seed: 6\nlearn_reward: true\n")
    runs, left_out = find_runs([tmp_path])
    assert [run.path.name for run in runs] == ["good"]
    assert {run.path.name: run.reason for run in left_out} == {
        "unfinished": "not finished: 1200 of 8000 env steps",
        "no-summary": "summary.json is broken",
        "no-return": "summary.json has no number as true_return_mean",
        "no-config": "config.yaml cannot be read",
        "no-metrics": "metrics.jsonl is broken",
        "no-env": "config.yaml lacks env.id",
    }


def test_a_run_that_was_stopped_early_is_left_out(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", 0.5, ["seed=0", "num_env_steps=8000"])
    summary = json.loads((path / "summary.json").read_text()) | {"num_env_steps": 2000}
    (path / "summary.json").write_text(json.dumps(summary))
    runs, left_out = find_runs([path])
    assert not runs
    assert [run.reason for run in left_out] == ["stopped early: 2000 of 8000 env steps"]


def test_an_unfinished_last_line_of_metrics_does_no_harm(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", 0.5, ["seed=0"])
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"num_env')
    assert len(find_runs([path])[0]) == 1


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is no folder"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(RunFolderError, match="holds no run"):
        find_runs([tmp_path])


# ---------------------------------------------------------------- methods


def test_a_method_is_teacher_sampler_and_what_differs(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / f"a{seed}", 0.9, [f"seed={seed}", "feedback.budget=50"])
        make_run(tmp_path / f"b{seed}", 0.8, [f"seed={seed}", "feedback.budget=100"])
        make_run(tmp_path / f"t{seed}", 1.0, [f"seed={seed}", "learn_reward=false"])
    groups = groups_of(tmp_path)
    sampler = groups.methods[1].sampler
    assert names(groups) == [
        "true reward",
        f"oracle, {sampler}, budget=50",
        f"oracle, {sampler}, budget=100",
    ]
    assert all(len(cell.runs) == 2 for cell in groups.cells.values())


def test_settings_of_a_teacher_belong_to_its_name(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.9, ["teacher.name=mistake", "teacher.eps_mistake=0.3"])
    make_run(tmp_path / "b", 0.9, ["teacher.name=mistake"])
    make_run(tmp_path / "c", 0.9, [])
    assert [method.teacher for method in groups_of(tmp_path).methods] == [
        "mistake",
        "mistake eps_mistake=0.3",
        "oracle",
    ]


def test_what_differs_between_environments_alone_tells_nothing_apart(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.9, ["env.id=Pendulum-v1", "num_env_steps=8000"])
    make_run(tmp_path / "b", 0.9, ["env.id=CartPole-v1", "num_env_steps=50000"])
    groups = groups_of(tmp_path)
    assert len(groups.methods) == 1
    assert groups.tasks == ("CartPole-v1", "Pendulum-v1")


def test_a_key_is_short_where_it_says_enough(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.9, ["feedback.segment_length=20", "reward.learning_rate=0.1"])
    make_run(tmp_path / "b", 0.9, ["feedback.segment_length=20", "reward.learning_rate=0.2"])
    make_run(tmp_path / "c", 0.9, ["feedback.segment_length=30", "reward.learning_rate=0.2"])
    first = groups_of(tmp_path).methods[0]
    assert first.others == ("segment_length=20", "reward.learning_rate=0.1")


def test_groups_that_lack_environments_are_said(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.9, ["env.id=CartPole-v1"])
    make_run(tmp_path / "b", 0.9, [])
    make_run(tmp_path / "c", 0.9, ["teacher.name=mistake"])
    assert any("1 of 2 groups are not on all 2 environments" in note for note in groups_of(tmp_path).notes)


def test_bookkeeping_tells_nothing_apart(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.9, ["seed=0", "tracking.tensorboard=true", "num_checkpoints_kept=1"])
    make_run(tmp_path / "b", 0.9, ["seed=1", "resources.num_env_runners=2", "checkpoint_interval=100"])
    make_run(tmp_path / "c", 0.9, ["seed=2", "snapshot=snapshots/pendulum-s2"])
    make_run(tmp_path / "d", 0.9, ["seed=3", "snapshot=snapshots/pendulum-s3"])
    groups = groups_of(tmp_path)
    assert [method.others for method in groups.methods] == [(), ("snapshot=snapshots/pendulum-s*",)]
    assert [len(cell.runs) for cell in groups.cells.values()] == [2, 2]


def test_settings_that_go_along_are_named_in_a_note_only(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.9, [])
    make_run(tmp_path / "b", 0.9, ["preset=robust"])
    groups = groups_of(tmp_path)
    assert all(not other.startswith("reward.") for method in groups.methods for other in method.others)
    assert any("reward.ensemble_size" in note for note in groups.notes)


def test_a_setting_that_an_older_run_did_not_know_has_its_default(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", 0.9, ["seed=0"])
    make_run(tmp_path / "b", 0.9, ["seed=1"])
    text = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(text.replace("  frame_stack: null\n", "").replace("  label_margin: 0.0\n", ""))
    assert (path / "config.yaml").read_text() != text
    groups = groups_of(tmp_path)
    assert len(groups.methods) == 1
    assert groups.tasks == ("Pendulum-v1",)


def test_settings_of_the_environment_make_tasks(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.9, ["env.horizon=100"])
    make_run(tmp_path / "b", 0.9, [])
    assert groups_of(tmp_path).tasks == ("Pendulum-v1, horizon=100", "Pendulum-v1, horizon=null")


def test_a_dataset_is_a_teacher_without_sampler(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.9, ["algorithm.name=cpl", "feedback.dataset=data/pendulum"])
    (method,) = groups_of(tmp_path).methods
    assert (method.teacher, method.sampler) == ("answers of pendulum", "")


def test_a_seed_counts_once(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.2, ["seed=0"])
    make_run(tmp_path / "a-2", 0.4, ["seed=0"])
    groups = groups_of(tmp_path)
    (cell,) = groups.cells.values()
    assert [run.path.name for run in cell.runs] == ["a-2"]
    assert [run.path.name for run in groups.left_out] == ["a"]


# ---------------------------------------------------------------- scores


def test_a_score_is_the_share_of_the_way_from_random_to_the_true_reward(tmp_path: Path) -> None:
    for seed, score in enumerate((0.9, 1.1)):
        make_run(tmp_path / f"t{seed}", score, ["learn_reward=false", f"seed={seed}"])
        make_run(tmp_path / f"a{seed}", score / 2, [f"seed={seed}"])
    groups = groups_of(tmp_path)
    true, learned = groups.methods
    np.testing.assert_allclose(groups.cells["Pendulum-v1", true].scores, [0.9, 1.1])
    np.testing.assert_allclose(groups.cells["Pendulum-v1", learned].scores, [0.45, 0.55])
    assert not groups.notes


def test_the_scale_is_that_of_the_same_learner(tmp_path: Path) -> None:
    make_run(tmp_path / "t0", 1.0, ["learn_reward=false", "algorithm.learning_rate=0.001"])
    make_run(tmp_path / "t1", 0.5, ["learn_reward=false", "algorithm.learning_rate=0.01"])
    make_run(tmp_path / "a0", 0.5, ["algorithm.learning_rate=0.001"])
    make_run(tmp_path / "a1", 0.5, ["algorithm.learning_rate=0.01"])
    groups = groups_of(tmp_path)
    scores = {m.name: float(groups.of(m)["Pendulum-v1"].scores[0]) for m in groups.methods if m.is_learned}
    assert sorted(scores.values()) == pytest.approx([0.5, 1.0])
    assert len([m for m in groups.methods if not m.is_learned]) == 2
    assert not groups.notes


def test_a_scale_that_does_not_match_is_said(tmp_path: Path) -> None:
    make_run(tmp_path / "t", 1.0, ["learn_reward=false"])
    make_run(tmp_path / "a", 0.5, ["algorithm.learning_rate=0.5"])
    groups = groups_of(tmp_path)
    assert groups.cells["Pendulum-v1", groups.methods[1]].scale.differs == ("algorithm.learning_rate",)
    assert any("differ in algorithm.learning_rate" in note for note in groups.notes)


def test_teacher_and_reward_model_do_not_keep_a_true_run_from_matching(tmp_path: Path) -> None:
    make_run(tmp_path / "t", 1.0, ["learn_reward=false"])
    make_run(tmp_path / "a", 0.5, ["teacher.name=mistake", "feedback.budget=7", "preset=robust"])
    assert not groups_of(tmp_path).notes


def test_without_true_reward_there_are_no_scores(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.5, [])
    groups = groups_of(tmp_path)
    assert all(cell.scores is None for cell in groups.cells.values())
    assert any("learn_reward=false" in note for note in groups.notes)


def test_a_true_reward_that_teaches_nothing_is_no_scale(tmp_path: Path) -> None:
    make_run(tmp_path / "t", 0.0, ["learn_reward=false"])
    make_run(tmp_path / "a", 0.5, [])
    groups = groups_of(tmp_path)
    assert all(cell.scores is None for cell in groups.cells.values())
    assert any("no better than random" in note for note in groups.notes)


def test_the_made_up_summary_has_the_keys_that_are_read(tmp_path: Path) -> None:
    summary = json.loads((make_run(tmp_path / "a", 0.5, []) / "summary.json").read_text())
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert all(f"| `{key}` |" in page.read_text() for key in summary)


def test_exploration_that_a_sweep_shared_is_no_difference(tmp_path: Path) -> None:
    shared = f"snapshot={tmp_path}/sweep/.snapshots/pendulum-sac-s0"
    make_run(tmp_path / "learned", 0.9, [shared])
    make_run(tmp_path / "true", 1.0, ["learn_reward=false"])
    groups = group_runs(find_runs([tmp_path])[0])
    assert not groups.notes
    assert [cell.scale is not None and not cell.scale.differs for cell in groups.cells.values()] == [True, True]
