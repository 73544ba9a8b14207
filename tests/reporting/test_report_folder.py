"""The folder of a report: what it lists, what is deleted with the next one, and what is left alone."""

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_up_runs import make_run, make_sweep

from themis_ray.cli import main
from themis_ray.errors import RunFolderError
from themis_ray.reporting import ALL_TASKS, make_report, write_report
from themis_ray.reporting.folder import MANIFEST, report_files
from themis_ray.reporting.publishing import report_artifacts

SMALL = {"envs": ("Pendulum-v1",), "teachers": ("oracle", "mistake"), "samplers": ("uniform",), "num_seeds": 1}


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["report", *map(str, arguments)])
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    return done.output


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---------------------------------------------------------------- the list


def test_a_report_lists_its_files(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "runs", **SMALL)
    page = write_report(make_report([sweep], "teacher.name=oracle"), tmp_path / "out", "mine")
    listed = json.loads((tmp_path / "out" / MANIFEST).read_text())["files"]
    assert set(listed) == names(tmp_path / "out")
    files = report_files(tmp_path / "out")
    assert files[0] == page
    assert {file.name for file in files} == set(listed) - {MANIFEST}


def test_what_an_earlier_report_had_more_is_gone_and_not_published(tmp_path: Path) -> None:
    sweep, out = make_sweep(tmp_path / "runs", **SMALL), tmp_path / "out"
    write_report(make_report([sweep], "teacher.name=oracle"), out, "mine")
    (out / "notes.txt").write_text("mine")
    (out / "own.png").write_bytes(b"mine")
    old = {"comparisons.csv", "scores.png", "profiles.png"}
    assert old < names(out)
    without_true = [path for path in sorted(sweep.iterdir()) if path.name != "true"]
    write_report(make_report(without_true), out, "mine")
    assert not old & names(out)
    assert {"notes.txt", "own.png"} < names(out)
    artifacts = report_artifacts(out)
    assert set(artifacts.tables) == {"runs", "groups", "curves"}
    assert {*artifacts.bundles["report"]} == names(out) - {"notes.txt", "own.png", MANIFEST}
    assert "charts/own" not in artifacts.pictures


@pytest.mark.parametrize("name", ["runs.csv", "report.html", "env_steps-pendulum-v1.png", MANIFEST])
def test_a_file_that_no_report_wrote_is_not_replaced(tmp_path: Path, name: str) -> None:
    sweep, out = make_sweep(tmp_path / "runs", **SMALL), tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"files": ["runs.csv"]}')
    output = run(sweep, "--out", out, code=2)
    assert f"{out / name} is no file of an earlier report" in output
    assert output.count("\n") == 1
    assert names(out) == {name}
    assert (out / name).read_text() == '{"files": ["runs.csv"]}'


def test_a_report_that_was_cut_short_can_be_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, out = make_report([make_sweep(tmp_path / "runs", **SMALL)]), tmp_path / "out"
    replace = Path.replace

    def fail(path: Path, target: Path) -> Path:
        if target.name == "table.tex":
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(RunFolderError, match="No space left on device"):
        write_report(made, out, "mine")
    monkeypatch.undo()
    assert (out / "runs.csv").is_file()
    write_report(made, out, "mine")
    assert set(json.loads((out / MANIFEST).read_text())["files"]) <= names(out)


def test_a_list_leads_to_no_file_elsewhere(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_report(make_report([make_sweep(tmp_path / "runs", **SMALL)]), out, "mine")
    (tmp_path / "precious.txt").write_text("mine")
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["files"] += ["../precious.txt", str(tmp_path / "precious.txt"), "..", 7]
    (out / MANIFEST).write_text(json.dumps(manifest))
    write_report(make_report([tmp_path / "runs"]), out, "mine")
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_without_a_list_the_page_alone_is_the_report(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<!doctype html>")
    (tmp_path / "runs.csv").write_text("a\n1\n")
    assert report_files(tmp_path) == [tmp_path / "report.html"]


# ---------------------------------------------------------------- storages


def test_sweeps_of_one_name_in_two_storages_are_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for where, teacher in (("x", "oracle"), ("y", "mistake")):
        for seed in range(2):
            settings = [f"teacher.name={teacher}", f"seed={seed}"]
            make_run(tmp_path / where / "smoke" / "pendulum" / f"s{seed}", 0.5, settings, is_finished=seed == 0)
    uris = [f"file://{tmp_path}/{where}/smoke" for where in ("x", "y")]
    monkeypatch.chdir(tmp_path)
    output = run(*uris, uris[0], "--title", "both")
    with (tmp_path / "report" / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["teacher"], row["path"]) for row in rows} == {
        ("oracle", f"{uris[0]}/pendulum/s0"),
        ("mistake", f"{uris[1]}/pendulum/s0"),
    }
    assert f"left out: {uris[1]}/pendulum/s1: not finished" in output
    page = (tmp_path / "report" / "report.html").read_text()
    assert f"{uris[0]}/pendulum/s1" in page
    assert "themis-report-" not in page + output


def test_what_a_uri_keeps_secret_stays_secret() -> None:
    from themis_ray.cli.report import _shown

    assert _shown("s3://bucket/sweeps/smoke/?endpoint_override=host:9&secret_key=x") == "s3://bucket/sweeps/smoke"
    assert _shown("s3://key:s3cret@bucket/sweeps") == "s3://bucket/sweeps"
    assert _shown("abfs://container@account/sweeps") == "abfs://container@account/sweeps"


# ---------------------------------------------------------------- rows


def test_without_scores_the_first_table_has_a_row_for_each_environment(tmp_path: Path) -> None:
    for env in ("Pendulum-v1", "CartPole-v1"):
        make_run(tmp_path / "runs" / env, 0.5, [f"env.id={env}"])
    report = make_report([tmp_path])
    assert [(row.task, row.return_mean) for row in report.summary_rows] == [
        ("CartPole-v1", 251.0),
        ("Pendulum-v1", -675.0),
    ]
    output = run(tmp_path / "runs", "--out", tmp_path / "out")
    assert "251.0" in output
    assert "-675.0" in output
    page = (tmp_path / "out" / "report.html").read_text()
    first = page[page.index('<section id="summary"') : page.index('<section id="returns"')]
    assert "<td>CartPole-v1</td>" in first
    assert "<td>251.0</td>" in first


def test_the_row_of_all_environments_counts_what_its_score_is_about(tmp_path: Path) -> None:
    make_run(tmp_path / "t", 1.0, ["learn_reward=false"])
    for seed in range(2):
        make_run(tmp_path / f"p{seed}", 0.5, [f"seed={seed}"])
    make_run(tmp_path / "c", 0.5, ["env.id=CartPole-v1", "feedback.budget=7"])
    make_run(tmp_path / "m", 0.5, ["env.id=CartPole-v1", "teacher.name=mistake"])
    rows = {row.method.teacher: row for row in make_report([tmp_path]).summary_rows}
    oracle, mistake = rows["oracle"], rows["mistake"]
    assert oracle.task == ALL_TASKS
    assert (oracle.num_tasks, oracle.num_runs, oracle.num_seeds, oracle.labels_mean) == (1, 2, 2, 100)
    assert (mistake.num_tasks, mistake.num_runs, mistake.num_seeds, mistake.labels_mean) == (0, 0, 0, None)
    assert "0 of 2" in run(tmp_path, "--out", tmp_path / "out")


def test_a_task_is_shown_as_it_is(tmp_path: Path) -> None:
    for value in ("true", "false"):
        make_run(tmp_path / "runs" / value, 0.5, [f"env.kwargs.g=[{value}]"])
    output = run(tmp_path / "runs", "--out", tmp_path / "out")
    assert "g=[true]" in "".join(output.split("│")).replace(" ", "").replace("\n", "")


def test_a_seed_below_0_is_one_line(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.5, [])
    assert run(tmp_path, "--seed", "-1", code=2) == (
        "error: --seed -1 is not allowed. Give a whole number of at least 0.\n"
    )
