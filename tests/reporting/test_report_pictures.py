"""Which pictures are drawn, what they are called, and what stands in them."""

from itertools import product
from pathlib import Path

import pytest
from made_up_runs import make_run
from matplotlib.figure import Figure

from themis_ray.reporting import ALL_TASKS, Report, make_report
from themis_ray.reporting.canvas import LIGHT, file_name, free_name, render
from themis_ray.reporting.charts import _CurveDrawing, _draw_heatmaps, _draw_profiles, draw_report

ENVS = ("Pendulum-v1", "CartPole-v1")


def keys_of(report: Report) -> list[str]:
    return [picture.key for picture in draw_report(report)]


def titles_of(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]


def legend_of(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


# ---------------------------------------------------------------- heat maps


def test_without_scores_there_is_a_map_for_every_environment_and_setting(tmp_path: Path) -> None:
    for env, teacher, budget in product(ENVS, ("oracle", "mistake"), (10, 20)):
        settings = [f"env.id={env}", f"teacher.name={teacher}", f"feedback.budget={budget}"]
        make_run(tmp_path / f"{env}-{teacher}-{budget}", 0.5, settings)
    report = make_report([tmp_path])
    assert "heatmap" in keys_of(report)
    assert titles_of(_draw_heatmaps(report, LIGHT)) == [
        *(f"CartPole-v1, budget={budget}" for budget in (10, 20)),
        *(f"Pendulum-v1, budget={budget}" for budget in (10, 20)),
    ]


def test_with_scores_the_map_of_a_setting_is_about_all_environments(tmp_path: Path) -> None:
    for env, teacher, budget in product(ENVS, ("oracle", "mistake"), (10, 20)):
        settings = [f"env.id={env}", f"teacher.name={teacher}", f"feedback.budget={budget}"]
        make_run(tmp_path / f"{env}-{teacher}-{budget}", 0.5, settings)
        make_run(tmp_path / f"{env}-true", 1.0, [f"env.id={env}", "learn_reward=false"])
    assert titles_of(_draw_heatmaps(make_report([tmp_path]), LIGHT)) == ["budget=10", "budget=20"]


def test_a_map_of_nothing_is_not_drawn(tmp_path: Path) -> None:
    make_run(tmp_path / "true", 1.0, ["learn_reward=false"])
    for teacher in ("oracle", "mistake"):
        make_run(tmp_path / teacher, 0.5, ["env.id=CartPole-v1", f"teacher.name={teacher}"])
    report = make_report([tmp_path])
    assert report.has_scores
    assert "heatmap" not in keys_of(report)


def test_maps_that_are_too_many_are_cut_and_counted(tmp_path: Path) -> None:
    for teacher, budget in product(("oracle", "mistake"), range(10, 23)):
        settings = [f"teacher.name={teacher}", f"feedback.budget={budget}"]
        make_run(tmp_path / f"{teacher}-{budget}", 0.5, settings)
    (picture,) = [picture for picture in draw_report(make_report([tmp_path])) if picture.key == "heatmap"]
    assert picture.text.endswith("The first 12 of 13 maps.")


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (("teacher.kind=scripted", "teacher.function=_mine:prefer"), "_mine:prefer"),
        (("algorithm.name=cpl", "feedback.dataset=/d/a$b_{$"), "answers of a$b_{$"),
        (("algorithm.name=cpl", "feedback.dataset=/d/$a$"), "answers of $a$"),
    ],
)
def test_a_name_is_shown_as_it_is(tmp_path: Path, settings: tuple[str, ...], name: str) -> None:
    for seed in range(2):
        make_run(tmp_path / f"a{seed}", 0.5, [*settings, f"seed={seed}"])
        make_run(tmp_path / f"t{seed}", 1.0, ["learn_reward=false", f"seed={seed}"])
    report = make_report([tmp_path])
    assert {"scores", "profiles", "improvement", "env_steps-pendulum-v1"} <= set(keys_of(report))
    assert legend_of(_draw_profiles(report, LIGHT)) == ["true reward", name]
    curves = _CurveDrawing("env_steps", "Pendulum-v1", report.curves["env_steps", "Pendulum-v1"])
    assert legend_of(curves(report, LIGHT)) == ["true reward", name, "random actions", "true reward, final"]


def test_a_dollar_sign_begins_no_formula() -> None:
    drawn = []

    def draw(*_: object) -> Figure:
        figure = Figure()
        axes = figure.subplots()
        axes.set_xticks([0.5], ["$x$"])
        drawn.append(axes.set_title("a $\\frac$ b"))
        return figure

    light, dark, width = render(draw)
    assert light.startswith(b"\x89PNG")
    assert dark.startswith(b"\x89PNG")
    assert width == 640
    assert [text.get_parse_math() for text in drawn] == [False, False]


# ---------------------------------------------------------------- files


def test_environments_that_differ_in_a_sign_are_two_files(tmp_path: Path) -> None:
    for gravity, seed in product((-1, 1), range(2)):
        make_run(tmp_path / f"{gravity}-{seed}", 0.5, [f"env.kwargs.g={gravity}", f"seed={seed}"])
    report = make_report([tmp_path])
    keys = keys_of(report)
    assert len(set(keys)) == len(keys)
    name = "env_steps-pendulum-v1-kwargs-g-1"
    assert [key for key in keys if key.startswith("env_steps")] == [name, f"{name}-2"]
    assert ALL_TASKS not in {task for _, task in report.curves}, "without scores nothing is said of both"


def test_a_name_is_no_longer_than_file_systems_take() -> None:
    assert file_name("Pendulum-v1, g=-1") == "pendulum-v1-g-1"
    assert len(file_name("ü" * 300)) == 50
    assert free_name("a", {"a", "a-2", "b"}) == "a-3"
    assert free_name("c", {"a"}) == "c"
