"""Run folders into cells: what is read, what is left out, what tells methods apart, and what a score is against."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import make_run

from themis_ray.reporting import find_runs, make_report
from themis_ray.reporting.groups import Groups, group_runs
from themis_ray.reporting.scales import is_scale
from themis_ray.reporting.tables import latex_table

HUMAN = ["teacher.kind=human", "teacher.study=walk", "teacher.url=http://localhost:8000"]
DATASET = ["algorithm.name=cpl", "feedback.dataset=/data/answers"]


def groups_of(path: Path) -> Groups:
    return group_runs(find_runs([path])[0])


def names(groups: Groups) -> list[str]:
    return [method.name for method in groups.methods]


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


def test_long_values_are_told_apart_by_short_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    for number, word in enumerate(("fast", "slow", "fine")):
        prompt = f"{'Prefer what walks. ' * 5}{word}{' Answer with a letter.' * 5}"
        settings = [f"teacher.prompt={prompt}", "teacher.kind=judge", "teacher.url=http://x", "teacher.model=m"]
        make_run(tmp_path / str(number), 0.5, settings)
    groups = groups_of(tmp_path)
    short = "Prefer what walks. P…swer with a letter."
    assert [method.teacher for method in groups.methods] == [
        f"judge:m prompt={short}{ending}" for ending in ("", " (2)", " (3)")
    ]


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
    (path / "config.yaml").write_text(text.replace("  frame_stack: null\n", "").replace("  mistake_rate: 0.0\n", ""))
    assert (path / "config.yaml").read_text() != text
    groups = groups_of(tmp_path)
    assert len(groups.methods) == 1
    assert groups.tasks == ("Pendulum-v1",)


def test_settings_of_the_environment_make_tasks(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.9, ["env.horizon=100"])
    make_run(tmp_path / "b", 0.9, [])
    assert groups_of(tmp_path).tasks == ("Pendulum-v1, horizon=100", "Pendulum-v1, horizon=200")


def test_a_run_that_gives_what_its_environment_decides_is_on_the_same_task(tmp_path: Path) -> None:
    given = (["env.horizon=200"], ["env.fixed_horizon=true", "env.horizon=200", "env.frame_stack=1"], [])
    for seed, settings in enumerate(given):
        make_run(tmp_path / str(seed), 0.5, [*settings, f"seed={seed}"])
    assert groups_of(tmp_path).tasks == ("Pendulum-v1",)
    make_run(tmp_path / "other", 0.5, ["env.horizon=100"])
    assert groups_of(tmp_path).tasks == ("Pendulum-v1, horizon=100", "Pendulum-v1, horizon=200")
    for name in ("0", "2"):  # cannot be made here
        config = tmp_path / name / "config.yaml"
        config.write_text(config.read_text().replace("Pendulum-v1", "NoSuch-v1"))
    assert groups_of(tmp_path).tasks[:2] == ("NoSuch-v1, horizon=200", "NoSuch-v1, horizon=null")


def test_a_dataset_is_a_teacher_without_sampler(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.9, ["algorithm.name=cpl", "feedback.dataset=data/pendulum"])
    (method,) = groups_of(tmp_path).methods
    assert (method.teacher, method.sampler) == ("answers of pendulum", "")


@pytest.mark.parametrize(
    ("datasets", "named"),
    [
        (("/data/oracle/answers", "/data/mistake/answers"), ("oracle/answers", "mistake/answers")),
        (("/data/oracle/s{seed}", "/data/mistake/s{seed}"), ("oracle/s*", "mistake/s*")),
        (("/a/x/answers", "/b/x/answers"), ("a/x/answers", "b/x/answers")),
        (("/data/oracle", "/data/mistake"), ("oracle", "mistake")),
        (("/data/oracle-s{seed}", "/data/mistake-s{seed}"), ("oracle-s*", "mistake-s*")),
    ],
)
def test_datasets_are_told_apart_by_where_they_lie(
    tmp_path: Path, datasets: tuple[str, str], named: tuple[str, str]
) -> None:
    for number, dataset in enumerate(datasets):
        for seed in range(2):
            settings = ["algorithm.name=cpl", f"feedback.dataset={dataset.format(seed=seed)}", f"seed={seed}"]
            make_run(tmp_path / f"{number}-{seed}", 0.5, settings)
    groups = groups_of(tmp_path)
    assert not groups.left_out
    assert {method.teacher for method in groups.methods} == {f"answers of {name}" for name in named}
    assert [len(cell.runs) for cell in groups.cells.values()] == [2, 2]
    assert not any(method.others for method in groups.methods)


def test_a_dataset_for_each_seed_is_one_teacher(tmp_path: Path) -> None:
    for seed in range(3):
        dataset = f"feedback.dataset=/data/oracle/s{seed}"
        make_run(tmp_path / f"{seed}", 0.5, ["algorithm.name=cpl", dataset, f"seed={seed}"])
    (cell,) = groups_of(tmp_path).cells.values()
    assert cell.method.name == "answers of oracle/s*"
    assert len(cell.runs) == 3


def test_settings_that_did_nothing_tell_nothing_apart(tmp_path: Path) -> None:
    make_run(tmp_path / "a0", 0.5, ["learn_reward=false", "teacher.name=mistake", "seed=0"])
    make_run(tmp_path / "a1", 0.5, ["learn_reward=false", "feedback.budget=7", "preset=robust", "seed=1"])
    dataset = ["algorithm.name=cpl", "feedback.dataset=/data/answers"]
    make_run(tmp_path / "b0", 0.5, [*dataset, "teacher.beta=1", "seed=0"])
    make_run(tmp_path / "b1", 0.5, [*dataset, "feedback.sampler=entropy", "seed=1"])
    assert names(groups_of(tmp_path)) == ["true reward", "answers of answers"]


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


def make_learned_and_true(path: Path, learned: list[float], true: list[float]) -> Groups:
    for name, scores, settings in (("a", learned, []), ("t", true, ["learn_reward=false"])):
        for seed, score in enumerate(scores):
            make_run(path / f"{name}{seed}", score, [*settings, f"seed={seed}"])
    return groups_of(path)


@pytest.mark.parametrize(
    ("learned", "true", "has_scale"),
    [
        ([0.5, 0.5, 0.5], [1e-4, 1e-4, 1e-4], False),  # a hair above random actions, and others were far above
        ([0.5], [0.04], False),
        ([0.5], [0.06], True),
        ([0.0, 0.1], [-0.3, 0.0, 0.4], False),  # by chance, for all that is known
        ([0.0, 0.1], [0.1, 0.3, 0.5], True),
        ([0.0, 0.1], [0.0, 1.0, 1.0, 1.0], True),  # some fail, as they do
    ],
)
def test_a_true_reward_that_hardly_beats_random_actions_is_no_scale(
    tmp_path: Path, learned: list[float], true: list[float], has_scale: bool
) -> None:
    groups = make_learned_and_true(tmp_path, learned, true)
    assert {cell.scale is not None for cell in groups.cells.values()} == {has_scale}
    assert any("no better than random" in note for note in groups.notes) != has_scale


def test_the_spread_of_random_actions_counts_too() -> None:
    # Two standard errors: the first of 2 / 2, the second as large for want of a spread of its own.
    random = np.array([-3.0, -1.0, 1.0, 3.0])
    error = np.sqrt(random.var(ddof=1) / 4 + random.var(ddof=1))
    assert not is_scale(random, np.array([1.99 * error]), 0.0)
    assert is_scale(random, np.array([2.01 * error]), 0.0)
    assert is_scale(random, np.array([5.0, 6.0, 7.0]), 60.0)
    assert not is_scale(random, np.array([5.0, 6.0, 7.0]), 61.0)


def test_groups_without_a_scale_of_their_own_are_counted(tmp_path: Path) -> None:
    for rate, true in ((0.001, 1.0), (0.01, 0.0)):
        make_run(tmp_path / f"t{rate}", true, ["learn_reward=false", f"algorithm.learning_rate={rate}"])
        make_run(tmp_path / f"a{rate}", 0.5, [f"algorithm.learning_rate={rate}"])
    groups = groups_of(tmp_path)
    assert [cell.scale is None for cell in groups.cells.values()].count(True) == 2
    assert any("2 of its 4 groups count in no score" in note for note in groups.notes)


# ---------------------------------------------------------------- runs that were stopped


def stop(path: Path, *, has_summary: bool) -> Path:
    """Make a finished run one that was stopped early, by `stop` of a sweep or by a scheduler."""
    if has_summary:
        summary = json.loads((path / "summary.json").read_text()) | {"num_env_steps": 2000}
        (path / "summary.json").write_text(json.dumps(summary))
    else:
        (path / "summary.json").unlink()
        (path / "stopped.json").write_text('{"by": "asha"}')
    return path


@pytest.mark.parametrize("has_summary", [True, False])
def test_seeds_that_were_stopped_are_missed_where_they_would_stand(tmp_path: Path, has_summary: bool) -> None:
    for seed in range(8):
        for name, settings in (
            ("oracle", []),
            ("human", HUMAN),
            ("dataset", DATASET),
            ("true", ["learn_reward=false"]),
        ):
            path = make_run(tmp_path / f"{name}{seed}", 0.5, [*settings, f"seed={seed}", "num_env_steps=8000"])
            if name != "oracle" and seed < 2:
                stop(path, has_summary=has_summary)
    # Of other settings, and a seed that has run to its end since.
    stop(make_run(tmp_path / "other", 0.5, ["feedback.budget=7", "num_env_steps=8000"]), has_summary=has_summary)
    stop(make_run(tmp_path / "again", 0.5, ["seed=0", "num_env_steps=8000"]), has_summary=has_summary)
    report = make_report([tmp_path])
    assert {cell.method.teacher: cell.num_stopped for cell in report.groups.cells.values()} == {
        "true reward": 2,
        "oracle": 0,
        "human:walk": 2,
        "answers of answers": 2,
    }
    assert not report.verdict.is_enough
    assert report.verdict.text.startswith("Seeds are missing: 3 of 4 cells have runs that were stopped early")
    assert "Too few" not in report.verdict.text
    (note,) = [note for note in report.notes if "stopped early" in note]
    assert note.startswith("8 runs were stopped early")
    assert "2 of human:walk, disagreement on Pendulum-v1" in note
    assert "Seeds that were stopped early are missing." in latex_table(report)


def test_stopped_runs_of_other_settings_take_nothing_from_the_verdict(tmp_path: Path) -> None:
    for seed in range(5):
        make_run(tmp_path / f"{seed}", 0.5, [f"seed={seed}", "num_env_steps=8000"])
    stop(make_run(tmp_path / "other", 0.5, ["feedback.budget=7", "num_env_steps=8000"]), has_summary=True)
    report = make_report([tmp_path])
    assert report.verdict.is_enough
    assert any("no group misses a seed by that" in note for note in report.notes)


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
