import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.distributions import Categorical, Normal, TanhTransform, TransformedDistribution

from themis_ray.rllib.learners import target_entropy
from themis_ray.rllib.modules import DQNModule, SACModule
from themis_ray.rllib.updates import ReplayBatch, _sample_action, dqn_update, sac_update

NUM_ROWS, GAMMA, TAU, RATE = 32, 0.97, 0.13, 0.05
STATE = Box(-np.inf, np.inf, (4,), np.float32)
TORQUE = Box(-1.0, 1.0, (3,), np.float32)
BUTTONS = Discrete(5)


def make_sac(action_space, seed: int = 0) -> SACModule:
    torch.manual_seed(seed)
    config = {"hidden_sizes": [16, 16], "num_seed_steps": 0, "initial_alpha": 0.7}
    module = SACModule(observation_space=STATE, action_space=action_space, inference_only=False, model_config=config)
    for parameter in module.target_critics.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))  # so that targets and critics differ
    return module


def make_dqn() -> DQNModule:
    torch.manual_seed(0)
    config = {"hidden_sizes": [16, 16], "num_seed_steps": 0, "final_epsilon": 0.1, "epsilon_steps": 10}
    module = DQNModule(observation_space=STATE, action_space=BUTTONS, inference_only=False, model_config=config)
    for parameter in module.target_q_network.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return module


def sac_parameters(module: SACModule) -> dict[str, list[torch.nn.Parameter]]:
    return {
        "critic": list(module.critics.parameters()),
        "policy": [*module.pi_encoder.parameters(), *module.pi.parameters()],
        "alpha": [module.log_alpha],
    }


def sgd(groups: dict[str, list[torch.nn.Parameter]]) -> dict[str, torch.optim.Optimizer]:
    return {name: torch.optim.SGD(parameters, lr=RATE) for name, parameters in groups.items()}


def make_batch(action_space, seed: int = 1) -> ReplayBatch:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(action_space, Discrete):
        actions = torch.randint(int(action_space.n), (NUM_ROWS,), generator=generator)
    else:
        actions = torch.rand(NUM_ROWS, *action_space.shape, generator=generator) * 2 - 1
    return ReplayBatch(
        observations=torch.randn(NUM_ROWS, 4, generator=generator),
        next_observations=torch.randn(NUM_ROWS, 4, generator=generator),
        actions=actions,
        rewards=torch.randn(NUM_ROWS, generator=generator),
        terminated=(torch.rand(NUM_ROWS, generator=generator) < 0.3).float(),
    )


def descend(loss: torch.Tensor, parameters: list[torch.nn.Parameter]) -> None:
    gradients = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= RATE * gradient


def q_value(critic, observations, actions=None) -> torch.Tensor:
    """The critic written out from its layers, without the module's own forward."""
    x = observations if actions is None else torch.cat([observations, actions], dim=1)
    for layer in critic["encoder"].layers:
        x = layer(x)
    return critic["head"](x)


def blend(targets, sources) -> None:
    with torch.no_grad():
        for target, source in zip(targets.parameters(), sources.parameters(), strict=True):
            target.copy_((1 - TAU) * target + TAU * source)


def reference_critic_step(module: SACModule, value: Callable, y: torch.Tensor) -> dict[str, float]:
    """Both critics, each towards the targets y (N,); value(critic) gives its values (N,) of the batch."""
    q_mean = value(module.critics[0]).mean().item()
    loss = sum(((value(critic) - y) ** 2).mean() for critic in module.critics)
    descend(loss, sac_parameters(module)["critic"])
    return {"critic_loss": loss.item(), "q_mean": q_mean}


def reference_box_step(module: SACModule, batch: ReplayBatch, entropy_goal: float) -> dict[str, float]:
    """Algorithm 1 of Haarnoja et al. 2018b, one step, with torch.distributions."""

    def policy(observations: torch.Tensor) -> TransformedDistribution:
        mean, log_std = module.pi(module.pi_encoder(observations)).split(3, dim=-1)
        return TransformedDistribution(Normal(mean, log_std.clamp(-20, 2).exp()), [TanhTransform(cache_size=1)])

    alpha = float(module.log_alpha.detach().exp())
    with torch.no_grad():
        distribution = policy(batch.next_observations)
        next_actions = distribution.rsample()
        log_probability = distribution.log_prob(next_actions).sum(-1)
        q_next = torch.stack([q_value(c, batch.next_observations, next_actions)[:, 0] for c in module.target_critics])
        soft_value = q_next.min(0).values - alpha * log_probability
        y = batch.rewards + GAMMA * torch.where(batch.terminated.bool(), torch.zeros(NUM_ROWS), soft_value)
    critics = reference_critic_step(module, lambda c: q_value(c, batch.observations, batch.actions)[:, 0], y)
    distribution = policy(batch.observations)
    actions = distribution.rsample()
    log_probability = distribution.log_prob(actions).sum(-1)
    q = torch.minimum(*(q_value(c, batch.observations, actions)[:, 0] for c in module.critics))
    policy_loss = (alpha * log_probability - q).mean()
    descend(policy_loss, sac_parameters(module)["policy"])
    descend(-(module.log_alpha * (log_probability.detach() + entropy_goal)).mean(), [module.log_alpha])
    blend(module.target_critics, module.critics)
    entropy = -log_probability.mean().item()
    return {**critics, "policy_loss": policy_loss.item(), "alpha": alpha, "entropy": entropy}


def reference_discrete_step(module: SACModule, batch: ReplayBatch, entropy_goal: float) -> dict[str, float]:
    """Equations 10 to 12 of Christodoulou 2019, summed action by action."""
    alpha = float(module.log_alpha.detach().exp())
    with torch.no_grad():
        distribution = Categorical(logits=module.pi(module.pi_encoder(batch.next_observations)))
        q_next = torch.minimum(*(q_value(c, batch.next_observations) for c in module.target_critics))
        soft_value = torch.zeros(NUM_ROWS)
        for action in range(5):
            log_probability = distribution.log_prob(torch.full((NUM_ROWS,), action))
            soft_value += log_probability.exp() * (q_next[:, action] - alpha * log_probability)
        y = batch.rewards + GAMMA * (1 - batch.terminated) * soft_value
    rows = torch.arange(NUM_ROWS)
    critics = reference_critic_step(module, lambda c: q_value(c, batch.observations)[rows, batch.actions], y)
    distribution = Categorical(logits=module.pi(module.pi_encoder(batch.observations)))
    q = torch.minimum(*(q_value(c, batch.observations) for c in module.critics)).detach()
    policy_loss = -(alpha * distribution.entropy() + (distribution.probs * q).sum(-1)).mean()
    descend(policy_loss, sac_parameters(module)["policy"])
    entropy = distribution.entropy().mean().item()
    descend(module.log_alpha * (entropy - entropy_goal), [module.log_alpha])
    blend(module.target_critics, module.critics)
    return {**critics, "policy_loss": policy_loss.item(), "alpha": alpha, "entropy": entropy}


def assert_same_parameters(module: torch.nn.Module, expected: torch.nn.Module, before: torch.nn.Module) -> None:
    old = dict(before.named_parameters())
    for (name, parameter), (_, wanted) in zip(module.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-5, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}")
        assert not torch.equal(parameter, old[name]), f"{name} did not move"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("space", "reference"), [(TORQUE, reference_box_step), (BUTTONS, reference_discrete_step)], ids=["box", "discrete"]
)
def test_sac_step_equals_the_formulas_written_out(space, reference, seed: int) -> None:
    module, batch, goal = make_sac(space, seed), make_batch(space, seed), target_entropy(space)
    expected, before = copy.deepcopy(module), copy.deepcopy(module)
    torch.manual_seed(5)
    losses = sac_update(module, sgd(sac_parameters(module)), batch, GAMMA, TAU, goal)
    torch.manual_seed(5)
    wanted = reference(expected, batch, goal)
    assert losses.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float(losses[name]) == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert_same_parameters(module, expected, before)


def test_dqn_step_equals_the_formula_written_out() -> None:
    module, batch = make_dqn(), make_batch(BUTTONS)
    batch = ReplayBatch(  # rewards far off, so that both branches of the Huber loss are taken
        batch.observations, batch.next_observations, batch.actions, batch.rewards * 3, batch.terminated
    )
    expected, before = copy.deepcopy(module), copy.deepcopy(module)
    losses = dqn_update(module, sgd({"critic": list(module.q_network.parameters())}), batch, GAMMA, TAU)
    errors = []
    for i in range(NUM_ROWS):
        with torch.no_grad():
            best = int(expected.q_network(batch.next_observations[i : i + 1])[0].argmax())
            target = batch.rewards[i]
            if not batch.terminated[i]:
                target = target + GAMMA * expected.target_q_network(batch.next_observations[i : i + 1])[0, best]
        errors.append(expected.q_network(batch.observations[i : i + 1])[0, batch.actions[i]] - target)
    huber = [0.5 * e**2 if abs(e) < 1 else abs(e) - 0.5 for e in errors]
    assert {bool(abs(e) < 1) for e in errors} == {True, False}
    loss = torch.stack(huber).mean()
    descend(loss, list(expected.q_network.parameters()))
    blend(expected.target_q_network, expected.q_network)
    assert float(losses["critic_loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert_same_parameters(module, expected, before)


@pytest.mark.parametrize("space", [TORQUE, BUTTONS], ids=["box", "discrete"])
def test_targets_move_a_share_tau_towards_the_new_critics(space) -> None:
    module = make_sac(space)
    before = [p.clone() for p in module.target_critics.parameters()]
    sac_update(module, sgd(sac_parameters(module)), make_batch(space), GAMMA, TAU, -1.0)
    for old, new, source in zip(before, module.target_critics.parameters(), module.critics.parameters(), strict=True):
        torch.testing.assert_close(new, old + TAU * (source - old))


@pytest.mark.parametrize("space", [TORQUE, BUTTONS], ids=["box", "discrete"])
@pytest.mark.parametrize("moving", ["critic", "policy", "alpha"])
def test_each_step_changes_its_own_parameters_only(space, moving: str) -> None:
    module = make_sac(space)
    groups = sac_parameters(module)
    before = {name: [p.clone() for p in parameters] for name, parameters in groups.items()}
    optimizers = {
        name: torch.optim.SGD(parameters, lr=RATE if name == moving else 0.0) for name, parameters in groups.items()
    }
    sac_update(module, optimizers, make_batch(space), GAMMA, TAU, -1.0)
    for name, parameters in groups.items():
        has_moved = any(not torch.equal(p, old) for p, old in zip(parameters, before[name], strict=True))
        assert has_moved == (name == moving), name


def test_terminated_rows_have_no_future() -> None:
    batch = make_batch(BUTTONS)
    done = ReplayBatch(batch.observations, batch.next_observations, batch.actions, batch.rewards, torch.ones(NUM_ROWS))
    changed = ReplayBatch(
        batch.observations, batch.next_observations + 5, batch.actions, batch.rewards, torch.ones(NUM_ROWS)
    )
    results = []
    for rows in (done, changed):
        module = make_dqn()
        dqn_update(module, sgd({"critic": list(module.q_network.parameters())}), rows, GAMMA, TAU)
        results.append([p.detach().clone() for p in module.q_network.parameters()])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_log_probability_equals_torchs_transformed_distribution() -> None:
    module, observations = make_sac(TORQUE), torch.randn(500, 4)
    torch.manual_seed(3)
    actions, log_probabilities = _sample_action(module, observations)
    mean, log_std = module.policy(observations)
    torch.manual_seed(3)
    distribution = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform(cache_size=1)])
    expected = distribution.rsample()
    torch.testing.assert_close(actions, expected)
    torch.testing.assert_close(log_probabilities, distribution.log_prob(expected).sum(-1), rtol=1e-4, atol=1e-4)


def test_log_probability_and_its_gradient_stay_finite_at_the_edges() -> None:
    module = make_sac(TORQUE)
    with torch.no_grad():
        module.pi.weight.zero_()
        module.pi.bias.copy_(torch.tensor([40.0, -40.0, 0.0, -30.0, 5.0, 5.0]))
    actions, log_probabilities = _sample_action(module, torch.randn(200, 4))
    (log_probabilities.mean() + actions.mean()).backward()
    assert torch.isfinite(log_probabilities).all()
    assert all(torch.isfinite(p.grad).all() for p in module.pi.parameters())


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (TORQUE, -3.0),
        (Box(-2.0, 2.0, (2, 2), np.float32), -4.0),
        (Discrete(4), 0.89 * np.log(4)),
    ],
)
def test_target_entropy_is_minus_the_size_for_box_and_positive_for_discrete(space, expected: float) -> None:
    assert target_entropy(space) == pytest.approx(expected)


@pytest.mark.parametrize("space", [TORQUE, BUTTONS], ids=["box", "discrete"])
@pytest.mark.parametrize(("goal", "direction"), [(-100.0, -1), (100.0, 1)])
def test_temperature_rises_when_entropy_is_below_its_target(space, goal: float, direction: int) -> None:
    module = make_sac(space)
    before = module.log_alpha.item()
    sac_update(module, sgd(sac_parameters(module)), make_batch(space), GAMMA, TAU, goal)
    assert (module.log_alpha.item() - before) * direction > 0


def test_rows_are_views() -> None:
    batch = make_batch(TORQUE)
    part = batch.rows(3, 7)
    assert torch.equal(part.rewards, batch.rewards[3:7])
    assert part.observations.data_ptr() == batch.observations[3:].data_ptr()
