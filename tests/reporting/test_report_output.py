"""`themis report` from end to end: page, pictures, CSV, LaTeX, and what is said on the terminal."""

import csv
import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from made_up_runs import make_run, make_sweep
from PIL import Image

from themis_ray.cli import main
from themis_ray.errors import ConfigError, RunFolderError
from themis_ray.reporting import ALL_TASKS, Estimate, Report, find_runs, make_report
from themis_ray.reporting.canvas import LIGHT
from themis_ray.reporting.charts import _budget_lines, _draw_heatmaps, draw_report
from themis_ray.reporting.tables import escape_latex, latex_table, number, with_interval

SMALL = {"envs": ("Pendulum-v1",), "teachers": ("oracle", "mistake"), "samplers": ("uniform",)}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_sweep(tmp_path_factory.mktemp("report") / "sweep", samplers=("uniform", "entropy"))
    make_run(path / "unfinished", 0.5, ["seed=9", "num_env_steps=8000"], is_finished=False)
    return path


@pytest.fixture(scope="module")
def done(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("out")
    return run(sweep, "--baseline", "teacher.name=oracle", "--out", out), out


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["report", *map(str, arguments)])
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    return done.output


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- the command


def test_the_command_prints_the_table_and_the_page(done: tuple[str, Path]) -> None:
    output, out = done
    assert f"Page: {out / 'report.html'}" in output
    for said in ("true reward", "oracle, entropy", "2 of 2", "Too few seeds to conclude", "not finished: 1200 of 8000"):
        assert said in re.sub(r"\s+", " ", output)
    assert "Against teacher.name=oracle" in output


def test_everything_is_written(done: tuple[str, Path]) -> None:
    _, out = done
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("report.html", "report.json", "table.tex", "runs.csv", "groups.csv", "comparisons.csv", "curves.csv"),
        *("scores.png", "heatmap.png", "profiles.png", "improvement.png"),
        *(f"{axis}-{name}.png" for axis in ("env_steps", "labels") for name in ("all", "pendulum-v1", "cartpole-v1")),
    }
    for picture in out.glob("*.png"):
        with Image.open(picture) as image:
            assert image.width > 500
            assert np.asarray(image.convert("L")).std() > 5


def test_the_default_folder_is_below_the_one_that_was_given(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "runs", **SMALL, num_seeds=1)
    assert f"Page: {sweep / 'report' / 'report.html'}" in run(sweep)
    # A report is no run.
    assert "single seed" in run(sweep)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "is no folder"),
        (["{sweep}", "--baseline", "teacher.nme=oracle"], "Did you mean 'teacher.name'?"),
        (["{sweep}", "--baseline", "teacher.name=nobody"], "The groups have: mistake, noisy, oracle."),
        (["{sweep}", "--baseline", "oracle"], "Write KEY=VALUE"),
        (["{sweep}", "--baseline", "env.id=CartPole-v1"], "within an environment"),
    ],
)
def test_a_mistake_is_one_line(sweep: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    output = run(*[text.format(sweep=sweep) for text in arguments], "--out", tmp_path / "out", code=2)
    assert said in output
    assert output.count("\n") == 1
    assert output.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "runs", **SMALL, num_seeds=1)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in run(sweep, "--out", tmp_path / "file" / "out", code=2)


def test_no_finished_run_is_an_error(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.5, ["seed=0"], is_finished=False)
    with pytest.raises(RunFolderError, match="none of the 1 runs found is finished"):
        make_report([tmp_path])


# ---------------------------------------------------------------- what is concluded


@pytest.mark.parametrize(
    ("num_seeds", "said"),
    [(1, "a single seed and no interval"), (2, "mean nothing"), (3, "3 or 4 seeds"), (4, "not to be trusted")],
)
def test_too_few_seeds_are_said(tmp_path: Path, num_seeds: int, said: str) -> None:
    report = make_report([make_sweep(tmp_path, **SMALL, num_seeds=num_seeds)], "teacher.name=oracle")
    assert not report.verdict.is_enough
    assert said in report.verdict.text
    assert {one.says for one in report.comparisons} == {"too few seeds"}
    assert "Too few seeds to conclude" in latex_table(report)
    for row in report.rows:
        assert (row.iqm.low is None) == (num_seeds == 1)
    for curves in report.curves.values():
        assert all((curve.low is None) == (num_seeds == 1) for curve in curves.values())


def test_enough_seeds_conclude(tmp_path: Path) -> None:
    report = make_report([make_sweep(tmp_path, **SMALL, num_seeds=6)], "teacher.name=oracle")
    assert report.verdict.is_enough
    says = {one.method.teacher: one for one in report.comparisons}
    assert says["mistake"].says == "worse"
    assert says["mistake"].improvement.value == 0.0
    assert says["mistake"].difference.high < 0
    assert says["mistake"].baseline.teacher == "oracle"
    assert "Too few" not in latex_table(report)


def test_a_group_is_compared_with_its_own_sampler(sweep: Path) -> None:
    report = make_report([sweep], "teacher=oracle")
    pairs = {(one.method.name, one.baseline.name) for one in report.comparisons if one.task == ALL_TASKS}
    assert ("mistake, entropy", "oracle, entropy") in pairs
    assert ("noisy, uniform", "oracle, uniform") in pairs
    assert len(pairs) == 4
    # The true reward asks nobody and so goes with no sampler.
    assert not report.notes


def test_a_group_without_its_baseline_is_named(sweep: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "odd", 0.5, ["teacher.name=mistake", "feedback.sampler=kcenter", "num_env_steps=8000"])
    report = make_report([sweep, tmp_path], "teacher.name=oracle")
    assert any("mistake, kcenter" in note for note in report.notes)


def test_other_settings_stay_the_same_beside_the_baseline(tmp_path: Path) -> None:
    for budget in (10, 20):
        for teacher in ("oracle", "mistake"):
            make_run(tmp_path / f"{teacher}-{budget}", 0.5, [f"teacher.name={teacher}", f"feedback.budget={budget}"])
    pairs = {(one.method.name, one.baseline.name) for one in make_report([tmp_path], "budget=20").comparisons}
    sampler = find_runs([tmp_path])[0][0].sampler
    assert pairs == {
        (f"oracle, {sampler}, budget=10", f"oracle, {sampler}, budget=20"),
        (f"mistake, {sampler}, budget=10", f"mistake, {sampler}, budget=20"),
    }


def test_everything_is_compared_with_the_true_reward(sweep: Path) -> None:
    report = make_report([sweep], "learn_reward=false")
    overall = [one for one in report.comparisons if one.task == ALL_TASKS]
    assert len(overall) == 6
    assert {one.baseline.name for one in overall} == {"true reward"}
    assert {one.task for one in report.comparisons} == {ALL_TASKS, "CartPole-v1", "Pendulum-v1"}


def test_the_numbers_are_those_of_the_runs(sweep: Path) -> None:
    report = make_report([sweep])
    for row in report.rows:
        if row.task != ALL_TASKS:
            cell = report.groups.cells[row.task, row.method]
            assert row.return_mean == pytest.approx(np.mean([run.true_return for run in cell.runs]))
            assert row.score_mean == pytest.approx(cell.scores.mean())
            # Of three values nothing is cut off.
            assert row.iqm.value == pytest.approx(cell.scores.mean())
    true = report.row(ALL_TASKS, report.groups.methods[0])
    assert true is not None
    assert true.score_mean == pytest.approx(1.0)
    # Pairs of methods add up.
    both = report.pairs + report.pairs.T
    np.testing.assert_allclose(both[np.isfinite(both)], 1.0)


def test_the_same_runs_give_the_same_report(sweep: Path) -> None:
    first, second = make_report([sweep]), make_report([sweep])
    assert first.rows == second.rows
    assert latex_table(first) == latex_table(second)
    other = make_report([sweep], seed=1)
    assert other.rows != first.rows
    assert [row.iqm.value for row in other.rows] == [row.iqm.value for row in first.rows]


def test_without_true_reward_returns_are_reported(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / f"a{seed}", 0.5 + seed / 10, [f"seed={seed}"])
        make_run(tmp_path / f"b{seed}", 0.3, [f"seed={seed}", "teacher.name=mistake"])
    output = run(tmp_path, "--out", tmp_path / "out", "--baseline", "teacher.name=oracle")
    assert "true return" in output
    assert "There are no scores" in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "scores.png").exists()
    assert (tmp_path / "out" / "env_steps-pendulum-v1.png").exists()


# ---------------------------------------------------------------- curves


def test_curves_end_where_the_runs_do(sweep: Path) -> None:
    report = make_report([sweep])
    learned = report.groups.methods[-1]
    steps = report.curves["env_steps", "Pendulum-v1"][learned]
    assert (steps.x[0], steps.x[-1]) == (800, 8000)
    assert steps.num_runs == 3
    assert steps.y[-1] > steps.y[0]
    assert ((steps.low <= steps.y + 1e-9) & (steps.y <= steps.high + 1e-9)).all()
    labels = report.curves["labels", "Pendulum-v1"]
    assert report.groups.methods[0] not in labels, "the true reward takes no labels"
    assert labels[learned].x[-1] == report.groups.of(learned)["Pendulum-v1"].runs[0].queries_asked
    overall = report.curves["env_steps", ALL_TASKS][learned]
    assert (overall.x[-1], overall.num_runs) == (1.0, 6)
    assert 0 < overall.y[-1] < 1.2


def test_without_scores_the_map_shows_returns(tmp_path: Path) -> None:
    for score, (teacher, sampler) in enumerate(product(("oracle", "mistake"), ("uniform", "entropy"))):
        make_run(tmp_path / f"{score}", score / 4, [f"teacher.name={teacher}", f"feedback.sampler={sampler}"])
    report = make_report([tmp_path])
    (picture,) = [picture for picture in draw_report(report) if picture.key == "heatmap"]
    assert picture.text.startswith("Mean return")
    axes = _draw_heatmaps(report, LIGHT).axes[0]
    assert {text.get_text() for text in axes.texts} == {"-1200", "-937.5", "-675", "-412.5", "1 run"}
    image = axes.images[0]
    assert image.get_clim() == (-1200.0, -412.5)


def test_budgets_have_a_picture_of_their_own(tmp_path: Path) -> None:
    for seed in range(2):
        for budget in (10, 100, 50):
            make_run(tmp_path / f"{budget}-{seed}", budget / 100, [f"feedback.budget={budget}", f"seed={seed}"])
        make_run(tmp_path / f"t{seed}", 1.0, ["learn_reward=false", f"seed={seed}"])
    report = make_report([tmp_path])
    (line,) = _budget_lines(report).values()
    assert [row.labels_mean for row in line] == [10, 50, 100]
    assert [row.iqm.value for row in line] == pytest.approx([0.1, 0.5, 1.0])
    keys = [picture.key for picture in draw_report(report)]
    assert "labels-budgets" in keys
    assert "heatmap" not in keys, "one teacher with one sampler is no map"


# ---------------------------------------------------------------- page


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "action", "data")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in ("meta", "img", "source", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_asks_nobody_for_anything(done: tuple[str, Path]) -> None:
    text = (done[1] / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert not page.open
    assert page.addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert not re.search(r"https?://|@import|url\(", re.sub(r'"data:[^"]+"', "", text))
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert {address[1:] for address in page.addresses if address[0] == "#"} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    assert "prefers-color-scheme: dark" in text
    assert page.tags.count("source") == page.tags.count("img") == 10


def test_the_page_says_what_counts(done: tuple[str, Path]) -> None:
    text = (done[1] / "report.html").read_text()
    assert 'class="verdict few"' in text
    assert "not finished: 1200 of 8000 env steps" in text
    assert "too few seeds</td>" in text
    for section in ("summary", "baseline", "heatmap", "profiles", "improvement", "env-steps", "labels", "left-out"):
        assert f'<section id="{section}"' in text


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    make_run(tmp_path / "<b>", 0.5, ["seed=0"], is_finished=False)
    make_run(tmp_path / "a", 0.5, ["seed=0"])
    run(tmp_path, "--out", tmp_path / "out", "--title", "<i>mine</i>")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<b>" not in text
    assert "<i>" not in text
    assert "&lt;i&gt;mine&lt;/i&gt;" in text


# ---------------------------------------------------------------- tables


def test_csv_can_be_read_back(done: tuple[str, Path], sweep: Path) -> None:
    _, out = done
    report = make_report([sweep], "teacher.name=oracle")
    groups = rows_of(out / "groups.csv")
    assert len(groups) == len(report.rows)
    for line, row in zip(groups, report.rows, strict=True):
        assert (line["env"], line["teacher"], line["sampler"]) == (row.task, row.method.teacher, row.method.sampler)
        assert float(line["iqm"]) == row.iqm.value
        assert (float(line["iqm_low"]), float(line["iqm_high"])) == (row.iqm.low, row.iqm.high)
        assert float(line["optimality_gap"]) == row.gap.value
    runs = rows_of(out / "runs.csv")
    assert len(runs) == 2 * (6 + 1) * 3
    for env in ("Pendulum-v1", "CartPole-v1"):
        scores = [float(r["score"]) for r in runs if r["env"] == env and r["teacher"] == "true reward"]
        assert np.mean(scores) == pytest.approx(1.0)
    compared = rows_of(out / "comparisons.csv")
    assert [line["says"] for line in compared] == [one.says for one in report.comparisons]
    assert {line["axis"] for line in rows_of(out / "curves.csv")} == {"env_steps", "labels"}


def balanced(text: str) -> bool:
    depth = 0
    for sign in re.sub(r"\\[{}]", "", text):
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    return depth == 0


def check_latex(report: Report) -> list[str]:
    text = latex_table(report)
    assert balanced(text)
    assert re.findall(r"\\begin\{(\w+)\}", text) == re.findall(r"\\end\{(\w+)\}", text)[::-1] == ["table", "tabular"]
    (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)
    body = [line for line in text.splitlines() if line.endswith("\\\\")]
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert not re.search(r"(?<!\\)[#_^~]", "\n".join(body))
    return body


def test_the_latex_table_is_whole(sweep: Path) -> None:
    body = check_latex(make_report([sweep]))
    assert len(body) == 1 + 7
    assert body[1].strip().startswith("true reward & - & 3 & 1.000 & 1.000 & 1.00 [")


def test_latex_of_settings_and_no_scores(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.5, ["feedback.budget=10"])
    make_run(tmp_path / "b", 0.5, ["feedback.budget=20"])
    body = check_latex(make_report([tmp_path]))
    assert "budget=10" in body[1]
    assert "$-$675.0" in body[1]


def test_numbers_have_as_many_digits_as_they_need() -> None:
    assert [number(value) for value in (-675.04, 0.98765, -0.0001, None)] == ["-675.0", "0.988", "0.000", "-"]
    assert number(9.16, beside=480.0) == "9.2"
    assert with_interval(Estimate(0.5, -0.004, 1.0)) == "0.50 [0.00, 1.00]"
    assert with_interval(Estimate(0.5)) == "0.50"


def test_no_sign_is_a_command() -> None:
    assert escape_latex(r"a_b & 5% {x} \y ~ ^ #1 $") == (
        r"a\_b \& 5\% \{x\} \textbackslash{}y \textasciitilde{} \textasciicircum{} \#1 \$"
    )


def test_the_baseline_has_to_be_a_setting_of_the_runs(sweep: Path) -> None:
    with pytest.raises(ConfigError, match="no group has it"):
        make_report([sweep], "feedback.budget=12345")
