import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from ray.rllib.core.columns import Columns
from test_modules import FRAME, GRID, MIXED, OBSERVATIONS, STATE, TORQUE, make, observe

from themis_ray.envs import EnvSpec, infer_observation_kind
from themis_ray.errors import ConfigError
from themis_ray.explain import METHODS, attribute, fitting_methods
from themis_ray.rllib.modules import DQNModule, PPOModule, SACModule
from themis_ray.rllib.subjects import policy_subject, trace, value_subject

torch.set_num_threads(1)

MODULES = {
    "ppo": (PPOModule, Discrete(3)),
    "ppo box": (PPOModule, TORQUE),
    "ppo multi": (PPOModule, MultiDiscrete([3, 2])),
    "sac": (SACModule, TORQUE),
    "sac discrete": (SACModule, Discrete(3)),
    "dqn": (DQNModule, Discrete(3)),
}


def make_spec(observation_space: Box, action_space) -> EnvSpec:
    kind = infer_observation_kind(observation_space)
    return EnvSpec("Made-v0", "test", observation_space, action_space, kind, None, False, None, "")


def draw(observation_space: Box, action_space, count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    action_space.seed(0)
    actions = np.stack([np.asarray(action_space.sample()) for _ in range(count)])
    return observe(observation_space, count).numpy(), actions


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_the_explained_number_is_the_networks_own(name: str, kind: str) -> None:
    cls, action_space = MODULES[name]
    module, spec = make(cls, action_space, OBSERVATIONS[kind]), make_spec(OBSERVATIONS[kind], action_space)
    observations, actions = draw(OBSERVATIONS[kind], action_space)
    subject = policy_subject(module, spec)
    explained = subject.evaluate(subject.read(observations, actions)).numpy()
    batch = {Columns.OBS: torch.from_numpy(observations)}
    with torch.no_grad():
        if cls is DQNModule:
            outputs = module.q_network(batch[Columns.OBS])
        elif cls is SACModule:
            outputs = module.pi(module.pi_encoder(batch[Columns.OBS]))
        else:
            outputs = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    numbers = outputs.numpy()
    if name == "ppo multi":
        expected = numbers[range(6), actions[:, 0]] + numbers[range(6), 3 + actions[:, 1]]
    elif isinstance(action_space, Discrete):
        expected = numbers[range(6), actions]
    else:
        means = np.tanh(numbers[:, :2]) if cls is SACModule else numbers[:, :2]
        expected = np.linalg.norm(means, axis=1)
        second = policy_subject(module, spec, dimension=1)
        np.testing.assert_allclose(second.evaluate(second.read(observations, actions)), means[:, 1], atol=1e-6)
    np.testing.assert_allclose(explained, expected, rtol=1e-4, atol=1e-6)
    if subject.split is not None:
        rows = subject.read(observations, actions)
        with torch.no_grad():
            behind = subject.split.tail(*subject.split.stem(*rows.inputs), *rows.context)
        np.testing.assert_allclose(behind, explained, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_the_critic_is_explained_too(name: str) -> None:
    cls, action_space = MODULES[name]
    module, spec = make(cls, action_space), make_spec(STATE, action_space)
    observations, actions = draw(STATE, action_space)
    subject = value_subject(module, spec)
    explained = subject.evaluate(subject.read(observations, actions))
    states, acted = torch.from_numpy(observations), torch.from_numpy(actions)
    with torch.no_grad():
        match name:
            case "ppo" | "ppo box" | "ppo multi":
                expected = module.compute_values({Columns.OBS: states})
            case "dqn":
                expected = module.q_network(states).amax(dim=1)
            case "sac discrete":
                critic = module.critics[0]
                expected = critic["head"](critic["encoder"](states)).amax(dim=1)
            case _:
                values = [critic["head"](critic["encoder"](states, acted)) for critic in module.critics]
                expected = torch.stack(values).mean(dim=0)[:, 0]
    torch.testing.assert_close(explained, expected, rtol=1e-4, atol=1e-6)
    result = attribute(subject, observations, actions, references=(observations, actions), rng=np.random.default_rng(0))
    assert np.abs(result.observations).max() > 0


@pytest.mark.parametrize("name", MODULES)
def test_what_complete_methods_say_of_a_critic_adds_up(name: str) -> None:
    cls, action_space = MODULES[name]
    module = make(cls, action_space)
    with torch.no_grad():
        for parameter in module.parameters():  # of fresh networks one action is the best everywhere
            parameter.mul_(2)
    subject = value_subject(module, make_spec(STATE, action_space))
    observations, actions = draw(STATE, action_space, 40)
    for method in fitting_methods(subject):
        if not METHODS[method].is_complete:
            continue
        result = attribute(
            subject,
            3 * observations,
            actions,
            method=method,
            references=(observations, actions),
            rng=np.random.default_rng(0),
        )
        parts = [result.observations] + ([] if result.actions is None else [result.actions])
        allowed = 0.0026 * sum(np.abs(part).sum(axis=1) for part in parts) + 1e-4
        assert (np.abs(result.totals - (result.values - result.baseline_values)) <= allowed).all(), method
    assert ("deep_lift" in fitting_methods(subject)) is (name not in ("dqn", "sac discrete"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", [FRAME, GRID, MIXED, STATE], ids=["image", "grid", "mixed", "vector"])
def test_policies_of_relu_fit_every_method_but_those_of_convolutions(space: Box, method: str) -> None:
    subject = policy_subject(make(DQNModule, Discrete(3), space), make_spec(space, Discrete(3)))
    if space in (MIXED, STATE) and method == "guided_grad_cam":
        assert method not in fitting_methods(subject)
        return
    steps = draw(space, Discrete(3), 4)
    result = attribute(subject, *steps, method=method, references=steps, rng=np.random.default_rng(0))
    assert result.observations.shape == (4, *space.shape)
    assert result.actions is None
    assert np.isfinite(result.observations).all()
    # Guided gradients may be cut off altogether in networks that have not learned.
    assert np.abs(result.observations).max() > 0 or method in ("deconvolution", "guided_backprop", "guided_grad_cam")


def test_what_cannot_be_explained_is_named() -> None:
    spec = make_spec(STATE, TORQUE)
    sac = make(SACModule, TORQUE)
    with pytest.raises(ConfigError, match=r"dimension 2 does not exist\. Allowed: 0 to 1"):
        policy_subject(sac, spec, dimension=2)
    with pytest.raises(ConfigError, match="Allowed: none"):
        policy_subject(make(DQNModule, Discrete(3)), make_spec(STATE, Discrete(3)), dimension=0)
    assert "lrp" not in fitting_methods(policy_subject(sac, spec))
    assert "lrp" in fitting_methods(policy_subject(sac, spec, dimension=0))
    with pytest.raises(ConfigError, match="comes from several"):
        trace(value_subject(sac, spec))


@pytest.mark.parametrize("name", ["ppo", "ppo box", "ppo multi", "dqn", "sac discrete"])
def test_what_is_traced_is_the_last_layer_and_a_loss_that_falls_as_the_number_rises(name: str) -> None:
    cls, action_space = MODULES[name]
    module, spec = make(cls, action_space), make_spec(STATE, action_space)
    subject = policy_subject(module, spec)
    rows = subject.read(*draw(STATE, action_space))
    traced = trace(subject)
    outputs = traced.network(rows.inputs[0])
    assert traced.last_layer is list(traced.network.modules())[-1]
    context = rows.context[0] if rows.context else torch.zeros(len(rows))
    outputs.requires_grad_()
    before, number = traced.loss(outputs, context), subject.plain.read(outputs, *rows.context).sum()
    slope = torch.autograd.grad(number, outputs)[0]
    assert float(traced.loss(outputs + 0.01 * slope, context)) < float(before)
