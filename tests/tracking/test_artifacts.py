"""What a run folder holds for trackers beside numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tracked_folders import make_run

from themis_ray.clips import read_clip
from themis_ray.data import PreferenceDataset
from themis_ray.envs import EnvConfig
from themis_ray.tracking import gather_artifacts, record_policy, write_predictions


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


def test_everything_is_found(run: Path) -> None:
    found = gather_artifacts(run)
    assert set(found.pictures) == {"plot", "explanations/reward-saliency"}
    assert {key: len(files) for key, files in found.clips.items()} == {
        "clips/trained_policy": 1,
        "clips/segments": 1,
        "explanations/reward-saliency-clips": 1,
    }
    assert set(found.pages) == {"explanations/reward-saliency-page"}
    assert set(found.bundles["run"]) == {"config.yaml", "metrics.jsonl", "summary.json", "plot.png"}
    assert set(found.bundles["preferences"]) == {"preferences/part-00000.parquet"}
    assert "explanations/reward-saliency/explanations.json" in found.bundles["explanations"]
    assert not any("segments" in name for files in found.bundles.values() for name in files)


def test_a_folder_with_nothing_has_nothing(tmp_path: Path) -> None:
    found = gather_artifacts(tmp_path)
    assert not any((found.pictures, found.clips, found.tables, found.pages, found.bundles))


def test_the_table_of_preferences_says_who_was_right(run: Path) -> None:
    answers = PreferenceDataset(run).preferences
    (run / "predicted_left.json").write_text(json.dumps({answers[0].query_id: 0.8765}))
    table = gather_artifacts(run).tables["preferences"]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["choice"] for row in rows] == ["left", "right", "equal", "skip"]
    assert [(row["left_true_return"], row["right_true_return"]) for row in rows] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [row["agrees_with_true_return"] for row in rows] == [False, True, None, None]
    assert [row["predicted_left"] for row in rows] == [0.8765, None, None, None]
    assert rows[0]["query_id"] == answers[0].query_id
    assert rows[0]["asked_at"] == "2025-01-02T00:00:00+00:00"
    assert rows[0]["answer_s"] == 2.0
    assert table.as_csv().splitlines()[0] == ",".join(table.columns)
    assert len(table.as_csv().splitlines()) == 5


def test_predictions_are_the_mean_over_members(run: Path) -> None:
    dataset = PreferenceDataset(run)

    def segment_returns(observations: NDArray[np.float32], actions: NDArray[np.float32]) -> NDArray[np.float64]:
        sums = observations.sum(axis=(1, 2)).astype(np.float64)
        return np.stack([sums, np.zeros_like(sums)])

    write_predictions(run, dataset, segment_returns)
    predicted = json.loads((run / "predicted_left.json").read_text())
    assert set(predicted) == {row.query_id for row in dataset.preferences}
    for row in dataset.preferences:
        margin = float(
            dataset.segment(row.left_id).observations.sum() - dataset.segment(row.right_id).observations.sum()
        )
        assert predicted[row.query_id] == pytest.approx((1 / (1 + np.exp(-margin)) + 0.5) / 2, abs=1e-4)


def test_the_trained_policy_is_filmed(tmp_path: Path) -> None:
    seen: list[NDArray[np.float32]] = []

    def policy(observations: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(observations)
        return np.full((len(observations), 1), 0.5, np.float32)

    env = EnvConfig(id="Pendulum-v1", horizon=12)
    path = record_policy(policy, env, 7, tmp_path / "clips")
    assert path == tmp_path / "clips" / "trained-policy.webm"
    assert len(read_clip(path)) == len(seen) == 12
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert record_policy(policy, env, 8, tmp_path / "clips") == path  # the newer one takes its place
    assert not np.array_equal(seen[0], seen[12])
