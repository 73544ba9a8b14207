"""What a sweep in storage refuses, in one line and before anything is lost."""

import shutil
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner
from tiny_sweep import write_sweep

from themis_ray.cli import main
from themis_ray.errors import RunFolderError
from themis_ray.storage import Storage
from themis_ray.sweeping import Progress, SweepFolder, load_sweep
from themis_ray.sweeping.run import _watch
from themis_ray.sweeping.settings import SchedulerSettings


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """Return the URI of a sweep that has not run yet."""
    settings = load_sweep(write_sweep(tmp_path, storage_path=f"file://{tmp_path / 'storage'}"))
    SweepFolder.create(tmp_path / "first" / "tiny", settings)
    return f"file://{tmp_path / 'storage'}/tiny"


def refusal(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["sweep", *arguments])
    assert done.exit_code == 2, done.output
    return done.output


def test_another_sweep_of_the_name_does_not_mix_with_it(uri: str, tmp_path: Path) -> None:
    storage = uri.rpartition("/")[0]
    out = str(tmp_path / "second" / "tiny")
    text = refusal(str(tmp_path / "tiny.yaml"), "--storage", storage, "--out", out)
    assert f"Continue a sweep with --resume {uri}" in text
    assert not Path(out).exists()


def test_a_folder_of_the_name_is_not_written_over(uri: str, tmp_path: Path) -> None:
    mine = tmp_path / "second" / "tiny"
    mine.mkdir(parents=True)
    (mine / "sweep.yaml").write_text("base: {}\n")
    assert "holds something else" in refusal("--resume", uri, "--out", str(mine), "--dry-run")
    assert (mine / "sweep.yaml").read_text() == "base: {}\n"
    assert "ends in tiny" in refusal("--resume", uri, "--out", str(tmp_path / "other"), "--dry-run")


@pytest.mark.parametrize("uri", ["runs", "nope://x/y", "s3://"])
def test_a_storage_that_is_none_is_told(uri: str, tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    text = refusal(str(path), "--storage", uri, "--out", str(tmp_path / "out"))
    assert f"storage_path={uri} is not allowed" in text
    assert not (tmp_path / "out").exists()


def test_resuming_where_no_sweep_is_told(tmp_path: Path) -> None:
    assert "holds no sweep" in refusal("--resume", f"file://{tmp_path}/nothing")


def test_only_a_sweep_of_which_nothing_ran_is_discarded(uri: str, tmp_path: Path) -> None:
    folder, _ = SweepFolder.open(uri, tmp_path / "first" / "tiny")
    assert folder.storage is not None
    folder.storage.write(".snapshots/pendulum/snapshot.json", b"{}")
    folder.discard()
    assert (folder.path / "sweep.yaml").is_file(), "the storage holds what was explored"
    assert folder.storage.read("sweep.yaml") is not None
    folder.storage.delete(".snapshots/pendulum/snapshot.json")
    folder.discard()
    assert not folder.path.exists()
    assert folder.storage.files() == []


def test_a_new_sweep_goes_on_from_nothing_of_a_deleted_one_of_its_name(uri: str, tmp_path: Path) -> None:
    old, settings = SweepFolder.open(uri, tmp_path / "first" / "tiny")
    assert SweepFolder.open(uri, tmp_path / "second" / "tiny")[0].work_path == old.work_path
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(tmp_path / "storage")
    new = SweepFolder.create(tmp_path / "first" / "tiny", settings)
    assert new.work_path != old.work_path
    assert new.snapshots_path.parent == new.work_path
    shutil.rmtree(tmp_path / "storage")
    (tmp_path / "storage").write_text("no folder")
    with pytest.raises(RunFolderError, match="tiny cannot be read"):
        _ = SweepFolder(new.path, settings.storage_path).work_path


def test_a_sweep_and_its_trials_may_have_names_of_any_characters(tmp_path: Path) -> None:
    variants = {"größe": {"feedback.budget": 4}}
    settings = load_sweep(write_sweep(tmp_path, variants=variants, storage_path=f"file://{tmp_path / 'storage'}"))
    folder = SweepFolder.create(tmp_path / "first" / "my sweep", settings)
    folder.mark_stopped("größe/s0", "asha")
    assert folder.storage is not None
    found, _ = SweepFolder.open(folder.storage.uri, tmp_path / "second" / "my sweep")
    assert found.is_over("größe/s0")
    assert found.work_path == folder.work_path


def test_a_storage_that_is_away_for_a_moment_does_not_end_the_sweep(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class OneTrial:
        config: ClassVar = {"trial": {"num_env_steps": 600}}

        def __str__(self) -> str:
            return "pendulum/s0"

        def get_error(self) -> None:
            """It has none of its own."""

    def fail(self: Storage) -> list[str]:
        raise OSError("Timeout was reached")

    folder, settings = SweepFolder.open(uri, tmp_path / "first" / "tiny")
    assert folder.storage is not None
    folder.storage.write("pendulum/s0/summary.json", b"{}")
    heard: list[Progress] = []
    asha = settings.model_copy(update={"scheduler": SchedulerSettings(kind="asha")})
    watch = _watch(asha, folder, "training", 2, 0, heard.append)
    with monkeypatch.context() as patch, caplog.at_level("WARNING", logger="themis_ray"):
        patch.setattr(Storage, "files", fail)
        watch.on_trial_complete(trial=OneTrial())
        watch.on_trial_error(trial=OneTrial())
    assert caplog.text.count("Timeout was reached") == 2
    assert [progress.num_over for progress in heard] == [1, 2]
    assert not folder.is_over("pendulum/s0"), "nobody knows whether the scheduler ended it"
    folder.refresh()
    assert folder.is_over("pendulum/s0")
