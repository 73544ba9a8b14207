import pytest
from pydantic import ValidationError

from themis_ray.config import dump_config, load_config, resolve
from themis_ray.errors import ConfigError, UnknownNameError
from themis_ray.reward import REWARD_MODELS, REWARD_PRESETS, RewardConfig


@pytest.mark.parametrize("name", REWARD_PRESETS)
def test_a_preset_sets_its_fields_and_no_other(name: str) -> None:
    config = RewardConfig(preset=name)
    changed = {**RewardConfig().model_dump(), **REWARD_PRESETS[name], "preset": name}
    assert config.model_dump() == changed


def test_the_presets_are_those_of_the_documentation() -> None:
    assert REWARD_PRESETS == {"default": {}, "robust": {"label_margin": 0.1, "filter_wrong_labels": True}}


def test_a_field_that_is_given_wins_over_its_preset() -> None:
    config = RewardConfig(preset="robust", label_margin=0.0)
    assert config.label_margin == 0.0
    assert config.filter_wrong_labels


def test_a_preset_is_chosen_in_a_file_or_on_the_command_line_and_survives_config_yaml(tmp_path) -> None:
    config = load_config(None, ["env.id=Pendulum-v1", "reward.preset=robust", "reward.label_margin=0"])
    assert config.reward.filter_wrong_labels
    assert config.reward.label_margin == 0
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"no reward preset 'robuts'. Did you mean 'robust'\? Known: default, r"):
        load_config(None, ["env.id=Pendulum-v1", "reward.preset=robuts"])


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


def test_every_option_is_off_by_default() -> None:
    config = RewardConfig()
    off = (config.temporal_crop, config.heldout_share, config.disagreement_bonus, config.label_margin)
    assert off == (0, 0, 0, 0)
    assert not config.filter_wrong_labels
    assert not config.normalize_predictions
    assert config.pseudo_label_threshold is None
    assert config.early_stop_patience is None


def test_every_network_has_one_line() -> None:
    assert set(REWARD_MODELS) == {"mlp", "cnn", "grid"}
    assert all(text and "\n" not in text for text in REWARD_MODELS.values())
