import copy

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from ray.rllib.core.columns import Columns

from themis_ray.envs import ImagePart, MixedBox
from themis_ray.rllib.modules import DQNModule, Encoder, PPOModule, SACModule

STATE = Box(-np.inf, np.inf, (4,), np.float32)
FRAME = Box(0, 255, (84, 84, 4), np.uint8)
GRID = Box(0, 255, (7, 7, 3), np.uint8)
TORQUE = Box(-1.0, 1.0, (2,), np.float32)
# An image, a grid, three numbers.
MIXED = MixedBox(
    np.full(4950, -np.inf, np.float32),
    np.full(4950, np.inf, np.float32),
    [ImagePart(0, 4800, (40, 40, 3), "image"), ImagePart(4800, 4947, (7, 7, 3), "grid")],
)
OBSERVATIONS = {"vector": STATE, "image": FRAME, "grid": GRID, "mixed": MIXED}
CONFIG = {
    "hidden_sizes": [16],
    "num_seed_steps": 10,
    "initial_alpha": 0.5,
    "final_epsilon": 0.1,
    "epsilon_steps": 100,
}


def observe(space: Box, num_rows: int = 6, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    if space.dtype == np.uint8:
        return torch.from_numpy(rng.integers(256, size=(num_rows, *space.shape), dtype=np.uint8))
    return torch.from_numpy(rng.normal(size=(num_rows, *space.shape)).astype(np.float32))


def make(cls, action_space, observation_space=STATE, *, inference_only: bool = False, seed: int = 0, **config):
    torch.manual_seed(seed)
    return cls(
        observation_space=observation_space,
        action_space=action_space,
        inference_only=inference_only,
        model_config={**CONFIG, **config},
    )


@pytest.mark.parametrize("kind", OBSERVATIONS)
@pytest.mark.parametrize("action_size", [0, 2])
def test_encoder_fits_the_observation(kind: str, action_size: int) -> None:
    encoder = Encoder(OBSERVATIONS[kind], [32, 8], action_size)
    assert encoder.kind == kind
    observations = observe(OBSERVATIONS[kind])
    actions = torch.rand(6, action_size) if action_size else None
    features = encoder(observations, actions)
    assert features.shape == (6, encoder.output_size) == (6, 8)
    assert features.dtype == torch.float32
    assert any(p.ndim == 4 for p in encoder.parameters()) == (kind != "vector")


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_encoder_features_depend_on_every_observation_and_action(kind: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(OBSERVATIONS[kind], [32], 2)
    observations, actions = observe(OBSERVATIONS[kind], 2), torch.rand(2, 2)
    features = encoder(observations, actions)
    assert not torch.equal(features[0], features[1])
    assert not torch.equal(features, encoder(observations, 1 - actions))


@pytest.mark.parametrize("kind", ["image", "grid"])
def test_encoder_reads_uint8_like_the_same_numbers_as_float(kind: str) -> None:
    encoder, observations = Encoder(OBSERVATIONS[kind], [8]), observe(OBSERVATIONS[kind])
    assert observations.dtype == torch.uint8
    assert torch.equal(encoder(observations), encoder(observations.float()))


def test_encoder_flattens_vectors_of_any_rank_and_takes_no_layer() -> None:
    encoder = Encoder(Box(-1, 1, (2, 3), np.float32), [])
    assert torch.equal(encoder(torch.arange(6.0).reshape(1, 2, 3)), torch.arange(6.0).reshape(1, 6))
    assert encoder.output_size == 6


@pytest.mark.parametrize("kind", OBSERVATIONS)
@pytest.mark.parametrize(
    ("space", "num_inputs"), [(Discrete(3), 3), (MultiDiscrete([2, 3]), 5), (TORQUE, 4)], ids=["d", "md", "box"]
)
def test_ppo_module_gives_distribution_inputs_and_values(kind: str, space, num_inputs: int) -> None:
    module = make(PPOModule, space, OBSERVATIONS[kind])
    batch = {Columns.OBS: observe(OBSERVATIONS[kind])}
    for forward in (module.forward_inference, module.forward_exploration, module.forward_train):
        assert forward(batch)[Columns.ACTION_DIST_INPUTS].shape == (6, num_inputs)
    assert module.compute_values(batch).shape == (6,)
    distribution = module.get_exploration_action_dist_cls().from_logits(
        module.forward_train(batch)[Columns.ACTION_DIST_INPUTS]
    )
    actions = distribution.sample()
    assert distribution.logp(actions).shape == (6,)
    assert tuple(actions.shape[1:]) == (() if isinstance(space, Discrete) else space.shape)
    if not isinstance(space, Box):
        assert all(space.contains(action) for action in actions.numpy())


@pytest.mark.parametrize("part", [slice(0, 4800), slice(4800, 4947), slice(4947, 4949), slice(4949, 4950)])
def test_every_part_of_a_mixed_observation_counts(part: slice) -> None:
    module = make(PPOModule, Discrete(4), MIXED)
    observations = observe(MIXED)
    changed = observations.clone()
    changed[:, part] += 1
    outputs = [module.forward_train({Columns.OBS: x})[Columns.ACTION_DIST_INPUTS] for x in (observations, changed)]
    assert (outputs[0] - outputs[1]).abs().amax(dim=1).min() > 0
    values = [module.compute_values({Columns.OBS: x}) for x in (observations, changed)]
    assert (values[0] - values[1]).abs().min() > 0


@pytest.mark.parametrize(
    ("shape", "num_features"),
    [
        ((84, 84, 4), 64 * 7 * 7),
        ((96, 96, 3), 64 * 8 * 8),
        ((36, 36, 1), 64),
        ((210, 160, 3), 64 * 9 * 6),
        ((400, 600, 3), 64 * 9 * 9),
        ((500, 500, 3), 64 * 9 * 9),
        ((7, 7, 3), 64 * 4 * 4),
        ((35, 100, 3), 64 * 8 * 24),
        ((2, 3, 4), 64 * 1 * 1),
        ((1, 1, 1), 64),
    ],
)
def test_encoder_leaves_few_features_of_pictures_of_any_size(shape: tuple[int, int, int], num_features: int) -> None:
    encoder = Encoder(Box(0, 255, shape, np.uint8), [])
    assert encoder.output_size == num_features
    assert encoder(observe(Box(0, 255, shape, np.uint8), 2)).shape == (2, num_features)


def test_encoder_scales_bytes_and_nothing_else() -> None:
    floats = Box(0.0, 1.0, (40, 40, 3), np.float32)
    as_bytes = Encoder(Box(0, 255, (40, 40, 3), np.uint8), [8])
    as_floats = Encoder(floats, [8])
    as_floats.load_state_dict(as_bytes.state_dict())
    pixels = observe(Box(0, 255, (40, 40, 3), np.uint8))
    torch.testing.assert_close(as_floats(pixels / 255), as_bytes(pixels))


def test_ppo_starts_close_to_uniform_and_shares_its_encoder_where_there_are_images() -> None:
    module = make(PPOModule, Discrete(4))
    logits = module.forward_train({Columns.OBS: observe(STATE)})[Columns.ACTION_DIST_INPUTS]
    assert logits.softmax(-1).sub(0.25).abs().max() < 0.05
    assert not module.is_shared
    assert not make(PPOModule, Discrete(4), GRID).is_shared
    assert make(PPOModule, Discrete(4), FRAME).is_shared
    assert make(PPOModule, Discrete(4), MIXED).is_shared


def test_ppo_log_std_is_learned_and_does_not_depend_on_the_state() -> None:
    module = make(PPOModule, TORQUE)
    logits = module.forward_train({Columns.OBS: observe(STATE)})[Columns.ACTION_DIST_INPUTS]
    assert torch.equal(logits[:, 2:], torch.zeros(6, 2))
    logits.sum().backward()
    assert torch.equal(module.log_std.grad, torch.full((2,), 6.0))


@pytest.mark.parametrize("kind", OBSERVATIONS)
@pytest.mark.parametrize("space", [TORQUE, Box(-3.0, 3.0, (2, 2), np.float32), Discrete(3)], ids=["box", "2d", "d"])
@pytest.mark.parametrize("t", [0, 50])
def test_sac_module_acts(kind: str, space, t: int) -> None:
    module = make(SACModule, space, OBSERVATIONS[kind])
    batch = {Columns.OBS: observe(OBSERVATIONS[kind])}
    for actions in (
        module.forward_inference(batch)[Columns.ACTIONS],
        module.forward_exploration(batch, t=t)[Columns.ACTIONS],
    ):
        if isinstance(space, Discrete):
            assert all(space.contains(action) for action in actions.numpy())
        else:
            assert actions.shape == (6, *space.shape)
            assert actions.abs().max() <= 1  # normalised; RLlib scales them to the space


def test_sac_targets_start_as_copies_and_ask_for_no_gradient() -> None:
    module = make(SACModule, TORQUE)
    for target, source in zip(module.target_critics.parameters(), module.critics.parameters(), strict=True):
        assert torch.equal(target, source)
        assert not target.requires_grad
        assert source.requires_grad
    first, second = (list(critic.parameters()) for critic in module.critics)
    assert not torch.equal(first[0], second[0])
    assert module.log_alpha.exp().item() == pytest.approx(0.5)


@pytest.mark.parametrize("space", [TORQUE, Discrete(4)], ids=["box", "discrete"])
def test_sac_seed_steps_act_uniformly_and_then_follow_the_policy(space) -> None:
    module = make(SACModule, space)
    batch = {Columns.OBS: torch.zeros(20_000, 4)}
    random = module.forward_exploration(batch, t=9)[Columns.ACTIONS].numpy()
    if isinstance(space, Discrete):
        shares = np.bincount(random, minlength=4) / len(random)
        assert np.abs(shares - 0.25).max() < 0.02
    else:
        assert (
            np.abs(np.quantile(random, [0.1, 0.25, 0.5, 0.75, 0.9], axis=0).T - [-0.8, -0.5, 0, 0.5, 0.8]).max() < 0.04
        )
    with torch.no_grad():
        module.pi.weight.zero_()
        module.pi.bias.copy_(torch.tensor([3.0, -3.0, -20.0, -20.0]))
    followed = module.forward_exploration(batch, t=10)[Columns.ACTIONS]
    if isinstance(space, Discrete):
        assert (followed == 0).float().mean() > 0.98
    else:
        torch.testing.assert_close(followed, torch.tensor([3.0, -3.0]).tanh().expand(20_000, 2))


def test_dqn_epsilon_is_one_while_seeding_then_falls_linearly() -> None:
    module = make(DQNModule, Discrete(3))
    steps = [0, 10, 60, 110, 10_000]
    assert [module.epsilon(t) for t in steps] == pytest.approx([1.0, 1.0, 0.55, 0.1, 0.1])


def test_dqn_epsilon_without_annealing_steps() -> None:
    module = make(DQNModule, Discrete(3), epsilon_steps=0, num_seed_steps=0)
    assert module.epsilon(1) == pytest.approx(0.1)


def test_dqn_explores_with_its_epsilon() -> None:
    module = make(DQNModule, Discrete(4))
    batch = {Columns.OBS: torch.zeros(20_000, 4)}
    greedy = module.forward_inference(batch)[Columns.ACTIONS]
    assert len(greedy.unique()) == 1
    for t in (0, 60, 110):
        actions = module.forward_exploration(batch, t=t)[Columns.ACTIONS]
        # A random action is the greedy one with probability 1/4.
        assert (actions != greedy).float().mean().item() == pytest.approx(0.75 * module.epsilon(t), abs=0.02)


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_dqn_module_acts_on_every_kind(kind: str) -> None:
    module = make(DQNModule, Discrete(3), OBSERVATIONS[kind])
    actions = module.forward_inference({Columns.OBS: observe(OBSERVATIONS[kind])})[Columns.ACTIONS]
    assert actions.shape == (6,)


@pytest.mark.parametrize(
    ("cls", "space", "missing"),
    [
        (SACModule, TORQUE, ("critics", "target_critics", "log_alpha")),
        (SACModule, Discrete(3), ("critics", "target_critics", "log_alpha")),
        (DQNModule, Discrete(3), ("target_q_network",)),
    ],
)
def test_inference_only_module_holds_no_critics_and_acts_alike(cls, space, missing: tuple[str, ...]) -> None:
    full, light = make(cls, space), make(cls, space, inference_only=True, seed=1)
    for name in missing:
        assert not any(key.startswith(name) for key in light.state_dict()), name
    light.set_state(full.get_state(inference_only=True))
    batch = {Columns.OBS: observe(STATE)}
    assert torch.equal(full.forward_inference(batch)[Columns.ACTIONS], light.forward_inference(batch)[Columns.ACTIONS])
    assert set(light.state_dict()) == set(full.get_state(inference_only=True))
    assert set(light.state_dict()) < set(full.state_dict())


@pytest.mark.parametrize("observations", [STATE, GRID, MIXED], ids=["vector", "grid", "mixed"])
@pytest.mark.parametrize("space", [TORQUE, Discrete(3)], ids=["box", "discrete"])
def test_reset_of_the_critics_keeps_the_policy(observations, space) -> None:
    module = make(SACModule, space, observations)
    before = copy.deepcopy(module.state_dict())
    module.reset_critics()
    for name, value in module.state_dict().items():
        is_critic = name.startswith(("critics", "target_critics"))
        assert torch.equal(value, before[name]) != is_critic, name
    for target, source in zip(module.target_critics.parameters(), module.critics.parameters(), strict=True):
        assert torch.equal(target, source)
        assert not target.requires_grad


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_reset_of_the_values_keeps_the_policy_and_what_it_shares(kind: str) -> None:
    module = make(PPOModule, Discrete(3), OBSERVATIONS[kind])
    before = copy.deepcopy(module.state_dict())
    parameters = module.reset_values()
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed >= {"vf.weight"}
    assert {name.split(".")[0] for name in changed} == ({"vf"} if module.is_shared else {"vf", "vf_encoder"})
    expected = [p for name, p in module.named_parameters() if name.split(".")[0] in ("vf", "vf_encoder")]
    assert {id(p) for p in parameters} == {id(p) for p in expected}


def test_reset_of_dqn_draws_a_new_network_and_copies_it() -> None:
    module = make(DQNModule, Discrete(3))
    before = copy.deepcopy(module.q_network.state_dict())
    module.reset_critics()
    for name, value in module.q_network.state_dict().items():
        assert not torch.equal(value, before[name])
        assert torch.equal(value, module.target_q_network.state_dict()[name])


@pytest.mark.parametrize("seed", [0, 1])
def test_same_seed_same_weights(seed: int) -> None:
    one, other = make(SACModule, TORQUE, seed=seed), make(SACModule, TORQUE, seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
