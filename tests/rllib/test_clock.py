"""The machine's clock is set back while a run asks."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording import record

from themis_ray.config import load_config, resolve
from themis_ray.data import PreferenceDataset, Rating
from themis_ray.envs import EnvConfig
from themis_ray.rllib import PreferenceLoop, evaluative, loop
from themis_ray.rllib.evaluative import take_demonstrations

SMALL = ["env.id=Pendulum-v1", "num_env_steps=600", "feedback.segment_length=10"]


@pytest.fixture(autouse=True)
def _clock_that_runs_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    times = (datetime(2025, 3, 1, tzinfo=UTC) - timedelta(hours=i) for i in range(1000))

    class Clock:
        @staticmethod
        def now(tz: Any) -> datetime:
            return next(times)

    for module in (loop, evaluative):
        monkeypatch.setattr(module, "datetime", Clock)


def make_loop(folder: Path, *overrides: str) -> PreferenceLoop:
    config, spec = resolve(load_config(None, [*SMALL, *overrides]))
    made = PreferenceLoop(config, spec, folder, None, None)
    made.pool = record(EnvConfig(id="Pendulum-v1"), 300)[0]
    return made


@pytest.mark.parametrize("kind", ["preference", "rating", "step"])
def test_no_answer_comes_before_its_question(kind: str, tmp_path: Path) -> None:
    asking = make_loop(tmp_path, f"feedback.kind={kind}")
    asking._ask(4, 200)
    rows = [*asking.dataset.preferences, *asking.dataset.evaluations]
    assert len(rows) == 4
    assert all(row.answered_at == row.asked_at for row in rows)


def test_a_demonstration_is_asked_for_when_it_is_shown(tmp_path: Path) -> None:
    asking = make_loop(tmp_path / "run", f"feedback.demonstrations={tmp_path / 'shown'}")
    now = datetime(2025, 3, 1, tzinfo=UTC)
    segments = asking.pool.sample_segments(3, 10, np.random.default_rng(0))
    ratings = [Rating(segment.id, 0, 2, "oracle", 0, 0, now, now) for segment in segments]
    PreferenceDataset(tmp_path / "shown").append_evaluations(segments, ratings)
    take_demonstrations(asking.settings, asking.spec, asking.dataset, 200)
    assert len(asking.dataset.demonstrations) == 3
    assert all(row.answered_at == row.asked_at for row in asking.dataset.demonstrations)
