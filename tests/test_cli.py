import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import ray
import yaml
from click.testing import CliRunner, Result

from themis_ray.cli import COMMANDS, main
from themis_ray.config import ExperimentConfig, load_config, resolve
from themis_ray.tracking import RunFolder

PENDULUM = "env.id=Pendulum-v1"


def themis(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_one_line(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.output
    for part in parts:
        assert part in lines[0], lines[0]


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when the program starts Ray or an experiment."""

    def start(*_: object, **__: object) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr("themis_ray.cli.train.run_experiment", start)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was stopped: configuration, two lines of metrics, one checkpoint."""
    config, _ = resolve(ExperimentConfig(env={"id": "Pendulum-v1"}, num_env_steps=1000))
    folder = RunFolder.create(tmp_path / "run", config)
    folder.metrics_path.write_text('{"num_env_steps": 100, "wall_s": 1}\n{"num_env_steps": 200, "wall_s": 2}\n')
    checkpoint = folder.checkpoints_path / "checkpoint_000000100"
    checkpoint.mkdir(parents=True)
    (checkpoint / "themis.json").write_text(json.dumps({"format": 1, "num_env_steps": 100}))
    (checkpoint / "state.pkl").write_bytes(b"weights")
    return folder.path


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["sede=3"], ["unknown setting 'sede'", "'seed'"]),
        (["feedback.buget=3"], ["'feedback.buget'", "'budget'"]),
        (["env.id=Pendulum-v9"], ["no environment 'Pendulum-v9'", "'Pendulum-v1'"]),
        (["feedback.sampler=disagrement"], ["no sampler 'disagrement'", "'disagreement'"]),
        (["teacher.name=oracel"], ["no teacher 'oracel'", "'oracle'"]),
        (["feedback.budget=-5"], ["feedback.budget=-5", "greater than or equal to 0"]),
        (["feedback.segment_length=500"], ["feedback.segment_length=500", "200"]),
        (["algorithm.name=dqn"], ["algorithm.name=dqn", "sac"]),
        (["no-such-file.yaml"], ["no-such-file.yaml", "cannot be read"]),
        (["a.yaml", "b.yaml"], ["two files", "a.yaml", "b.yaml"]),
    ],
)
@pytest.mark.parametrize("mode", [(), ("--dry-run",), ("--overwrite",)], ids=["run", "dry-run", "overwrite"])
def test_bad_settings_end_in_one_line_and_touch_no_run(
    settings: list[str], parts: list[str], mode: tuple[str, ...], run: Path, no_ray: None
) -> None:
    before = fingerprint(run)
    assert_one_line(themis("train", PENDULUM, *settings, "--out", run, *mode), *parts)
    assert fingerprint(run) == before


def test_nothing_given_says_what_to_give(no_ray: None) -> None:
    assert_one_line(themis("train"), "env is missing", "env.id=Pendulum-v1")


def test_an_out_folder_that_holds_a_run_is_refused(run: Path) -> None:
    before = fingerprint(run)
    assert_one_line(themis("train", PENDULUM, "--out", run), str(run), "holds a run", "--resume", "--overwrite")
    assert fingerprint(run) == before


def test_an_unwritable_out_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/themis-run")):
        assert_one_line(themis("train", PENDULUM, "--out", out), f"{out} cannot be written", "--out")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("extra", [["seed=3"], ["--out", "elsewhere"], ["--overwrite"]])
def test_resume_takes_no_other_settings(run: Path, extra: list[str]) -> None:
    before = fingerprint(run)
    assert_one_line(themis("train", "--resume", run, *extra), f"--resume {run}", "own settings")
    assert fingerprint(run) == before


def test_resume_of_no_run_is_refused(tmp_path: Path) -> None:
    assert_one_line(themis("train", "--resume", tmp_path / "none"), "holds no run")
    assert_one_line(themis("train", "--resume", tmp_path), "holds no run")
    assert list(tmp_path.iterdir()) == []


def test_resume_with_a_broken_line_in_the_middle_is_refused(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    metrics.write_text('{"num_env_steps": 100}\n{"num_env\n{"num_env_steps": 300}\n')
    before = fingerprint(run)
    assert_one_line(themis("train", "--resume", run), f"{metrics} line 2")
    assert fingerprint(run) == before


def _foreign_checkpoint(run: Path) -> str:
    path = run / "checkpoints" / "checkpoint_000000100"
    (path / "themis.json").write_text(json.dumps({"format": 99, "num_env_steps": 100}))
    return "format 99"


def _incomplete_checkpoint(run: Path) -> str:
    (run / "checkpoints" / "checkpoint_000000100" / "themis.json").unlink()
    return "no complete checkpoint"


def _corrupt_parquet(run: Path) -> str:
    (run / "preferences").mkdir()
    (run / "preferences" / "part-00000.parquet").write_bytes(b"PAR1 torn")
    return "part-00000.parquet"


@pytest.mark.parametrize("damage", [_foreign_checkpoint, _incomplete_checkpoint, _corrupt_parquet])
def test_resume_of_damaged_files_is_refused_and_loses_nothing(
    damage: Callable[[Path], str], run: Path, no_ray: None
) -> None:
    part = damage(run)
    before = fingerprint(run)
    assert_one_line(themis("train", "--resume", run), part)
    assert fingerprint(run) == before


@pytest.mark.ray
def test_resume_of_a_checkpoint_without_its_state_is_refused_and_loses_nothing(run: Path, ray_cluster: None) -> None:
    before = fingerprint(run)
    result = themis("train", "--resume", run)
    assert result.exit_code == 2
    *bar, error = result.stderr.strip().splitlines()  # the progress bar was up already
    assert len(bar) <= 1
    assert error.startswith("error: ")
    assert "checkpoint_000000100 cannot be read" in error
    assert "Delete it" in error
    after = fingerprint(run)
    assert after.pop("run.log")
    after.pop(".lock")
    assert after == before


def test_dry_run_prints_a_configuration_that_loads_and_starts_nothing(tmp_path: Path, no_ray: None) -> None:
    result = themis("train", "env.id=CartPole-v1", "seed=4", "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 0
    path = tmp_path / "dry.yaml"
    path.write_text(result.stdout)
    config = load_config(path)
    assert (config.env.id, config.seed, config.algorithm.name) == ("CartPole-v1", 4, "ppo")
    assert resolve(config)[0] == config
    assert not (tmp_path / "run").exists()
    again = themis("train", path, "--dry-run")
    assert again.stdout == result.stdout


def test_dry_run_of_a_resume_prints_the_runs_own_configuration(run: Path) -> None:
    before = fingerprint(run)
    result = themis("train", "--resume", run, "--dry-run")
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout) == yaml.safe_load((run / "config.yaml").read_text())
    assert fingerprint(run) == before


def test_a_file_and_overrides_go_together(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("env: {id: Pendulum-v1}\nseed: 1\n")
    printed = yaml.safe_load(themis("train", path, "seed=9", "--dry-run").stdout)
    assert (printed["env"]["id"], printed["seed"]) == ("Pendulum-v1", 9)


def test_help_ends_with_examples_that_parse() -> None:
    result = themis("train", "--help")
    assert result.exit_code == 0
    _, title, examples = result.output.partition("Examples:\n")
    assert title
    lines = [line.strip() for line in examples.strip().splitlines()]
    assert len(lines) >= 5
    for line in lines:
        program, command, *arguments = line.split()
        assert (program, command) == ("themis", "train")
        if "--resume" not in arguments and not any(argument.endswith(".yaml") for argument in arguments):
            dry = themis("train", *arguments, "--dry-run")
            assert dry.exit_code == 0, dry.output


def test_help_names_every_option() -> None:
    text = themis("train", "--help").output
    for option in ("--out", "--resume", "--from", "--overwrite", "--dry-run", "--debug", "[FILE.yaml] [key=value ...]"):
        assert option in text


def test_debug_shows_the_traceback_before_the_line(monkeypatch: pytest.MonkeyPatch, no_ray: None) -> None:
    arguments = ["train", "env.id=Nope-v1", "--debug"]
    monkeypatch.setattr(sys, "argv", ["themis", *arguments])
    result = themis(*arguments)
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: no environment 'Nope-v1'")


@pytest.mark.parametrize("command", ["explain", "clip"])
def test_a_folder_that_cannot_be_written_is_told_at_once(command: str, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    before = fingerprint(tmp_path)
    for out in (file, file / "x"):
        assert_one_line(themis(command, run, "--out", out), f"--out {out} cannot be written")
    assert fingerprint(tmp_path) == before


@pytest.mark.parametrize("place", ["file/x.parquet", "/proc/x.parquet"])
def test_a_file_that_cannot_be_written_is_told_before_the_service_is_asked(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / place
    nowhere = ("--url", "http://127.0.0.1:9")
    assert_one_line(themis("study", "export", "tea", "--out", path, *nowhere), f"--out {path} cannot be written")
    ledger = themis("simulate-annotators", "--study", "tea", "--ledger", path, *nowhere)
    assert_one_line(ledger, f"--ledger {path} cannot be written")


@pytest.mark.parametrize(
    "command",
    [
        ("explain", "run"),
        ("annotate", "run"),
        ("study", "add-queries", "tea", "--run", "run"),
        ("simulate-annotators", "--study", "tea"),
    ],
    ids=lambda command: command[0],
)
def test_a_seed_below_zero_is_refused(command: tuple[str, ...]) -> None:
    refused = themis(*command, "--seed", "-1")
    assert refused.exit_code == 2
    assert "Invalid value for '--seed'" in refused.output


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_imported_under_its_name_and_its_summary_fits_a_terminal(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name
    assert len(COMMANDS[name].summary) <= 80 - 4 - max(map(len, COMMANDS))


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from themis_ray.cli import main\n"
        "output = CliRunner().invoke(main, ['--help']).output\n"
        "assert 'Train an agent from preferences.' in output\n"
        "print({'torch', 'ray', 'gymnasium', 'numpy', 'rich'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
    unknown = CliRunner().invoke(main, ["trian"])
    assert unknown.exit_code == 2
    assert "No such command 'trian'" in unknown.output
