"""`--baseline`: which group is compared with which, and what cannot be compared."""

import json
from itertools import product
from pathlib import Path

import pytest
from made_up_runs import make_run

from themis_ray.errors import ConfigError
from themis_ray.reporting import Report, make_report

HUMAN = ["teacher.kind=human", "teacher.study=walk", "teacher.url=http://localhost:8000"]
SCRIPTED = ["teacher.kind=scripted", "teacher.function=mine:prefer"]
DATASET = ["algorithm.name=cpl", "feedback.dataset=/data/answers"]


def pairs(path: Path, baseline: str) -> set[tuple[str, str]]:
    return {(one.method.name, one.baseline.name) for one in make_report([path], baseline).comparisons}


def alone(report: Report) -> list[str]:
    return [note.partition(": ")[2] for note in report.notes if note.startswith("No group of the baseline")]


def test_every_learner_is_compared_with_its_own_true_reward(tmp_path: Path) -> None:
    for rate, sampler in product((0.0001, 0.001), ("uniform", "entropy")):
        settings = [f"algorithm.learning_rate={rate}", f"feedback.sampler={sampler}"]
        make_run(tmp_path / f"t{rate}", 1.0, [settings[0], "learn_reward=false"])
        make_run(tmp_path / f"a{rate}{sampler}", 0.5, settings)
    assert pairs(tmp_path, "learn_reward=false") == {
        (f"oracle, {sampler}, algorithm.learning_rate={rate}", f"true reward, algorithm.learning_rate={rate}")
        for rate, sampler in product((0.0001, 0.001), ("uniform", "entropy"))
    }


def test_a_learner_without_its_true_reward_is_named(tmp_path: Path) -> None:
    for rate in (1, 2):
        make_run(tmp_path / f"t{rate}", 1.0, [f"algorithm.learning_rate={rate}", "learn_reward=false"])
    for rate in (1, 3):
        make_run(tmp_path / f"a{rate}", 0.5, [f"algorithm.learning_rate={rate}"])
    report = make_report([tmp_path], "learn_reward=false")
    assert [one.method.others for one in report.comparisons] == [("algorithm.learning_rate=1.0",)]
    assert len(alone(report)) == 1
    assert "learning_rate=3.0" in alone(report)[0]


def test_a_teacher_is_known_by_the_name_it_has(tmp_path: Path) -> None:
    for name, settings in (
        ("oracle", ["teacher.name=oracle"]),
        ("mistake", ["teacher.name=mistake"]),
        ("human", HUMAN),
        ("scripted", SCRIPTED),
        ("dataset", DATASET),
    ):
        make_run(tmp_path / name, 0.5, settings)
    report = make_report([tmp_path], "teacher.name=oracle")
    assert {one.baseline.teacher for one in report.comparisons} == {"oracle"}
    assert {one.method.teacher for one in report.comparisons} == {
        *("mistake", "human:walk", "mine:prefer", "answers of answers")
    }
    assert {one.baseline.teacher for one in make_report([tmp_path], "teacher=human:walk").comparisons} == {"human:walk"}
    assert {one.baseline.teacher for one in make_report([tmp_path], "teacher.kind=human").comparisons} == {"human:walk"}
    with pytest.raises(
        ConfigError, match="The groups have: answers of answers, human:walk, mine:prefer, mistake, orac"
    ):
        make_report([tmp_path], "teacher.name=nobody")


def test_stored_answers_have_neither_teacher_settings_nor_sampler(tmp_path: Path) -> None:
    for beta in (1, 2):
        make_run(tmp_path / f"a{beta}", 0.5, [f"teacher.beta={beta}", "feedback.sampler=uniform"])
    make_run(tmp_path / "dataset", 0.5, [*DATASET, "teacher.beta=1", "feedback.sampler=entropy"])
    make_run(tmp_path / "true", 1.0, ["learn_reward=false", "teacher.beta=3"])
    report = make_report([tmp_path], "teacher.beta=2")
    assert {one.baseline.teacher for one in report.comparisons} == {"oracle beta=2.0"}
    for baseline, found in (("teacher.beta=3", "1.0, 2.0."), ("sampler=entropy", "uniform.")):
        with pytest.raises(ConfigError, match=f"The groups have: {found}"):
            make_report([tmp_path], baseline)


def test_other_settings_of_a_teacher_stay_the_same(tmp_path: Path) -> None:
    for beta, gamma in product((1, 2), (0.8, 0.9)):
        make_run(tmp_path / f"{beta}-{gamma}", 0.5, [f"teacher.beta={beta}", f"teacher.gamma={gamma}"])
    compared = {(left.partition(",")[0], right.partition(",")[0]) for left, right in pairs(tmp_path, "teacher.beta=1")}
    assert compared == {(f"oracle beta=2.0 gamma={gamma}", f"oracle beta=1.0 gamma={gamma}") for gamma in (0.8, 0.9)}


def test_all_settings_of_a_teacher_belong_to_its_name_and_the_closest_wins(tmp_path: Path) -> None:
    for sampler, beta in product(("uniform", "entropy"), (1, 2)):
        settings = [f"feedback.sampler={sampler}", f"teacher.beta={beta}"]
        make_run(tmp_path / f"o-{sampler}-{beta}", 0.5, settings)
        for rate in (0.1, 0.3):
            mistake = [*settings, "teacher.name=mistake", f"teacher.eps_mistake={rate}"]
            make_run(tmp_path / f"m-{sampler}-{beta}-{rate}", 0.5, mistake)
    assert pairs(tmp_path, "teacher.name=oracle") == {
        (f"mistake beta={beta}.0 eps_mistake={rate}, {sampler}", f"oracle beta={beta}.0, {sampler}")
        for sampler, beta, rate in product(("uniform", "entropy"), (1, 2), (0.1, 0.3))
    }


def test_what_changes_along_with_the_setting_is_no_difference(tmp_path: Path) -> None:
    """The preset brings its own ensemble, sampler and passes; a longer run its own exploration."""
    for preset, steps in product(("default", "robust"), (8000, 16000)):
        settings = [f"preset={preset}", f"num_env_steps={steps}", f"exploration.num_seed_steps={steps // 20}"]
        for teacher in ("oracle", "mistake"):
            make_run(tmp_path / f"{preset}{steps}{teacher}", 0.5, [*settings, f"teacher.name={teacher}"])
    for baseline in ("preset=default", "num_env_steps=8000"):
        report = make_report([tmp_path], baseline)
        assert len(report.comparisons) == 4, baseline
        assert not alone(report)
        for one in report.comparisons:
            assert one.method.teacher == one.baseline.teacher


@pytest.mark.parametrize("written", ["0.0001", "1e-4", "1.0e-4"])
def test_a_number_may_be_written_as_anywhere_else(tmp_path: Path, written: str) -> None:
    for rate in (0.0001, 0.001):
        make_run(tmp_path / f"{rate}", 0.5, [f"algorithm.learning_rate={rate}", "teacher.beta=1"])
    assert len(pairs(tmp_path, f"algorithm.learning_rate={written}")) == 1


def test_true_is_no_number(tmp_path: Path) -> None:
    for beta in (1, 2):
        make_run(tmp_path / f"{beta}", 0.5, [f"teacher.beta={beta}"])
    assert len(pairs(tmp_path, "teacher.beta=1")) == 1
    with pytest.raises(ConfigError, match="no group has it"):
        make_report([tmp_path], "teacher.beta=true")


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        ("teacher.name=oracle", "no group differs from it"),
        ("algorithm.name=auto", "no group differs from it"),
        ("seed=0", "seed tells no groups apart"),
        ("tracking.wandb=false", "tracking.wandb tells no groups apart"),
    ],
)
def test_a_baseline_that_compares_nothing_is_refused(tmp_path: Path, baseline: str, said: str) -> None:
    make_run(tmp_path / "a", 0.5, ["feedback.budget=10"])
    make_run(tmp_path / "b", 0.5, ["feedback.budget=20"])
    with pytest.raises(ConfigError, match=said):
        make_report([tmp_path], baseline)


def test_nothing_is_concluded_where_seeds_were_stopped(tmp_path: Path) -> None:
    for seed in range(8):
        path = make_run(tmp_path / f"o{seed}", 0.9, [f"seed={seed}", "num_env_steps=8000"])
        make_run(tmp_path / f"m{seed}", 0.2, [f"seed={seed}", "num_env_steps=8000", "teacher.name=mistake"])
        if seed < 2:
            summary = json.loads((path / "summary.json").read_text()) | {"num_env_steps": 2000}
            (path / "summary.json").write_text(json.dumps(summary))
    (one,) = make_report([tmp_path], "teacher.name=mistake").comparisons
    assert (one.num_seeds, one.num_stopped) == (6, 2)
    assert one.improvement.value == 1.0
    assert one.says == "runs were stopped"
