import pytest
from pydantic import ValidationError

from themis_ray.config import load_config, resolve
from themis_ray.errors import ConfigError
from themis_ray.reward import REWARD_MODELS, RewardConfig


def test_early_stopping_needs_held_out_preferences() -> None:
    with pytest.raises(ValidationError, match="Give heldout_share too"):
        RewardConfig(early_stop_patience=3)
    with pytest.raises(ConfigError, match="heldout_share"):
        load_config(None, ["env.id=Pendulum-v1", "reward.early_stop_patience=3"])


def test_a_crop_as_long_as_a_segment_is_refused_before_the_run() -> None:
    overrides = ["env.id=Pendulum-v1", "feedback.segment_length=10"]
    assert resolve(load_config(None, [*overrides, "reward.temporal_crop=9"]))[0].reward.temporal_crop == 9
    with pytest.raises(ConfigError, match=r"temporal_crop=10 leaves nothing .* Give at most 9"):
        resolve(load_config(None, [*overrides, "reward.temporal_crop=10"]))


@pytest.mark.parametrize(
    ("env_id", "given", "expected"),
    [
        ("Pendulum-v1", [], True),
        ("MiniGrid-Empty-Random-5x5-v0", [], True),
        ("ALE/Pong-v5", [], False),
        ("Pendulum-v1", ["reward.from_scratch=false"], False),
        ("ALE/Pong-v5", ["reward.from_scratch=true"], True),
    ],
)
def test_fits_start_from_scratch_but_for_images(env_id, given, expected) -> None:
    config, _ = resolve(load_config(None, [f"env.id={env_id}", *given]))
    assert config.reward.from_scratch is expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], 0.05), (["reward.filter_wrong_labels=true"], 0.0), (["reward.label_margin=0"], 0.0)],
)
def test_labels_keep_a_margin_unless_the_filter_judges_them(given, expected) -> None:
    config, _ = resolve(load_config(None, ["env.id=Pendulum-v1", *given]))
    assert config.reward.label_margin == expected


def test_every_option_is_off_by_default() -> None:
    config = RewardConfig()
    off = (
        config.temporal_crop,
        config.heldout_share,
        config.disagreement_bonus,
        config.mistake_rate,
    )
    assert off == (0, 0, 0, 0)
    assert not config.filter_wrong_labels
    assert not config.normalize_predictions
    assert config.pseudo_label_threshold is None
    assert config.early_stop_patience is None


def test_every_network_has_one_line() -> None:
    assert set(REWARD_MODELS) == {"mlp", "cnn", "grid", "mixed"}
    assert all(text and "\n" not in text for text in REWARD_MODELS.values())
