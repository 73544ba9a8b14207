"""Fine-tuning towards a reference policy: the divergence, the frozen copy, the start, and what is refused."""

import copy
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from ray.rllib.core.columns import Columns
from test_resume import SETTINGS, assert_same, train
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from themis_ray.config import dump_config, load_config, resolve
from themis_ray.envs import EnvConfig, differing_meanings, get_env_spec
from themis_ray.errors import CheckpointError, ConfigError, DataError, ThemisError
from themis_ray.randomness import seed_python
from themis_ray.rllib import build_algorithm_config, open_reference
from themis_ray.rllib.modules import PPOModule, SACModule, start_from_reference
from themis_ray.rllib.updates import ReplayBatch, _draw, categorical_kl, gaussian_kl, policy_kl, sac_update

STATE = Box(-np.inf, np.inf, (4,), np.float32)
TORQUE, BUTTONS, KNOBS = Box(-1.0, 1.0, (3,), np.float32), Discrete(5), MultiDiscrete([2, 4, 3])
CONFIG = {"hidden_sizes": [16, 16], "num_seed_steps": 0, "initial_alpha": 0.2, "has_reference": True}
NUM_ROWS = 64


def make(cls: Any, action_space: Any, *, seed: int = 0, **config: Any) -> Any:
    torch.manual_seed(seed)
    return cls(
        observation_space=STATE, action_space=action_space, inference_only=False, model_config={**CONFIG, **config}
    )


def distribution(inputs: torch.Tensor, space: Any) -> Any:
    """The policy as torch knows it; a list of independent ones for MultiDiscrete."""
    if isinstance(space, Discrete):
        return [Categorical(logits=inputs)]
    if isinstance(space, MultiDiscrete):
        starts = np.cumsum([0, *space.nvec])
        return [Categorical(logits=inputs[:, a:b]) for a, b in pairwise(starts)]
    mean, log_std = inputs[:, : inputs.shape[1] // 2], inputs[:, inputs.shape[1] // 2 :]
    return [Independent(Normal(mean, log_std.exp()), 1)]


def torch_kl(inputs: torch.Tensor, reference_inputs: torch.Tensor, space: Any) -> torch.Tensor:
    pairs = zip(distribution(inputs.detach(), space), distribution(reference_inputs, space), strict=True)
    return sum(kl_divergence(p, q) for p, q in pairs)


# ---------------------------------------------------------------- the divergence


@pytest.mark.parametrize(("space", "size"), [(BUTTONS, 5), (KNOBS, 9), (TORQUE, 6)], ids=["d", "md", "box"])
@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0])
def test_divergence_equals_that_of_torch(space: Any, size: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(size)
    inputs = torch.randn(NUM_ROWS, size, generator=generator)
    other = inputs + scale * torch.randn(NUM_ROWS, size, generator=generator)
    divergence = policy_kl(inputs, other, space)
    assert divergence.shape == (NUM_ROWS,)
    torch.testing.assert_close(divergence, torch_kl(inputs, other, space), rtol=1e-4, atol=1e-5)
    assert divergence.min() > -1e-6
    assert (divergence.abs().max() == 0) == (scale == 0)


def test_divergence_of_squashed_gaussians_is_the_mean_of_the_log_ratio_of_their_samples() -> None:
    mean, log_std = torch.tensor([[0.3, -1.2]]), torch.tensor([[-0.7, 0.2]])
    other_mean, other_log_std = torch.tensor([[0.1, -0.8]]), torch.tensor([[-0.2, -0.1]])
    torch.manual_seed(0)
    num_draws = 10_000
    actions, log_probability = _draw(mean.expand(num_draws, 2), log_std.expand(num_draws, 2))
    unsquashed = actions.double().atanh()
    other = Normal(other_mean.double(), other_log_std.double().exp()).log_prob(unsquashed)
    other_log_probability = (other - torch.log(1 - actions.double().square())).sum(-1)
    ratios = log_probability.double() - other_log_probability
    standard_error = float(ratios.std() / num_draws**0.5)
    exact = float(gaussian_kl(mean, log_std, other_mean, other_log_std))
    assert abs(float(ratios.mean()) - exact) < 4 * standard_error
    assert exact > 10 * standard_error, "the draws would not tell it from none"


def test_divergence_stays_finite_for_policies_that_are_almost_certain() -> None:
    narrow = torch.full((1, 2), -20.0)
    assert torch.isfinite(gaussian_kl(torch.zeros(1, 2), narrow, torch.ones(1, 2) * 1e-3, narrow)).all()
    logits = torch.tensor([[200.0, -200.0]])
    assert float(categorical_kl(logits, logits)) == 0
    assert float(categorical_kl(logits, -logits)) == pytest.approx(400, rel=1e-3)


# ---------------------------------------------------------------- the frozen copy


@pytest.mark.parametrize(
    ("cls", "space"),
    [(PPOModule, BUTTONS), (PPOModule, KNOBS), (PPOModule, TORQUE), (SACModule, BUTTONS), (SACModule, TORQUE)],
)
def test_a_module_takes_over_the_policy_and_keeps_its_values(cls: Any, space: Any) -> None:
    source, module = make(cls, space, seed=1, has_reference=False), make(cls, space, seed=2)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1)
    before = copy.deepcopy(module.state_dict())
    start_from_reference(module, source.get_state())
    for name, tensor in module.state_dict().items():
        if name.startswith(("pi", "log_std")):
            assert torch.equal(tensor, source.state_dict()[name]), name
        elif not name.startswith("reference"):
            assert torch.equal(tensor, before[name]), name
    observations = torch.randn(NUM_ROWS, 4)
    if cls is PPOModule:
        inputs = module.forward_train({Columns.OBS: observations})[Columns.ACTION_DIST_INPUTS]
    else:
        inputs = module.pi(module.pi_encoder(observations))
    assert torch.equal(inputs, module.reference(observations))


@pytest.mark.parametrize("cls", [PPOModule, SACModule])
def test_without_a_reference_a_module_is_what_it_was_and_with_one_its_draws_are_the_same(cls: Any) -> None:
    plain, module = make(cls, TORQUE, has_reference=False), make(cls, TORQUE)
    assert plain.reference is None
    assert not any(name.startswith("reference") for name in plain.state_dict())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name]), name
    assert not any(parameter.requires_grad for parameter in module.reference.parameters())


def test_env_runners_hold_no_reference_of_sac() -> None:
    full = make(SACModule, TORQUE)
    light = SACModule(observation_space=STATE, action_space=TORQUE, inference_only=True, model_config=CONFIG)
    assert set(light.state_dict()) == set(full.get_state(inference_only=True))
    assert not any(name.startswith("reference") for name in light.state_dict())


# ---------------------------------------------------------------- sac


def make_batch(space: Any) -> ReplayBatch:
    generator = torch.Generator().manual_seed(4)
    actions = torch.rand(NUM_ROWS, 3, generator=generator) * 2 - 1
    if isinstance(space, Discrete):
        actions = torch.randint(int(space.n), (NUM_ROWS,), generator=generator)
    states = torch.randn(2, NUM_ROWS, 4, generator=generator)
    return ReplayBatch(states[0], states[1], actions, torch.randn(NUM_ROWS, generator=generator), torch.zeros(NUM_ROWS))


def adam(module: SACModule, rate: float = 1e-3) -> dict[str, torch.optim.Optimizer]:
    policy = [*module.pi_encoder.parameters(), *module.pi.parameters()]
    groups = {"critic": list(module.critics.parameters()), "policy": policy, "alpha": [module.log_alpha]}
    return {name: torch.optim.Adam(parameters, lr=rate) for name, parameters in groups.items()}


def disturb(module: Any) -> None:
    """Lead the policy away from the reference."""
    noise = torch.Generator().manual_seed(6)
    with torch.no_grad():
        module.pi.weight.add_(0.5 * torch.randn(module.pi.weight.shape, generator=noise))


def outputs(module: SACModule, observations: torch.Tensor) -> torch.Tensor:
    return module.pi(module.pi_encoder(observations))


@pytest.mark.parametrize("space", [TORQUE, BUTTONS], ids=["box", "discrete"])
def test_the_policy_loss_grows_by_the_weighted_divergence(space: Any) -> None:
    results = []
    for coefficient in (0.0, 2.5):
        module, batch = make(SACModule, space), make_batch(space)
        disturb(module)
        wanted = torch_kl(outputs(module, batch.observations), module.reference(batch.observations), space).mean()
        torch.manual_seed(1)
        results.append(sac_update(module, adam(module), batch, 0.99, 0.01, -1.0, coefficient))
        assert float(results[-1]["kl_to_reference"]) == pytest.approx(float(wanted), rel=1e-4)
    plain, near = results
    difference = float(near["policy_loss"]) - float(plain["policy_loss"])
    assert difference == pytest.approx(2.5 * float(plain["kl_to_reference"]), rel=1e-3)
    for name in ("critic_loss", "entropy", "q_mean"):
        assert torch.equal(plain[name], near[name]), f"{name}: values are not regularised"


@pytest.mark.parametrize("space", [TORQUE, BUTTONS], ids=["box", "discrete"])
def test_a_large_coefficient_holds_the_policy_and_none_lets_it_go(space: Any) -> None:
    divergences = {}
    for coefficient in (0.0, 1e4):
        module, batch = make(SACModule, space), make_batch(space)
        optimizers, before = adam(module), copy.deepcopy(module.reference.state_dict())
        for _ in range(150):
            sac_update(module, optimizers, batch, 0.99, 0.01, -1.0, coefficient)
        inputs, reference_inputs = outputs(module, batch.observations), module.reference(batch.observations)
        divergences[coefficient] = float(torch_kl(inputs, reference_inputs, space).mean())
        for name, tensor in module.reference.state_dict().items():
            assert torch.equal(tensor, before[name]), f"{name} of the frozen reference moved"
    assert divergences[0.0] > 0.05
    assert divergences[1e4] < divergences[0.0] / 20


# ---------------------------------------------------------------- whole runs

TUNED = {
    "sac": ["algorithm.learning_rate=3e-3"],
    "ppo": ["algorithm.learning_rate=3e-3", "algorithm.clip_range=10", "algorithm.minibatch_size=50"],
}


def build(name: str, folder: Path, *overrides: str) -> Any:
    settings = [s for s in SETTINGS[name] if not s.startswith("exploration.")]
    config, _ = resolve(load_config(None, [*settings, *overrides]))
    seed_python(config.seed)
    return build_algorithm_config(config, folder).build_algo()


def module_state(algorithm: Any) -> dict[str, np.ndarray]:
    return algorithm.get_state()["learner_group"]["learner"]["rl_module"]["default_policy"]


@pytest.fixture(scope="module", params=["sac", "ppo"])
def reference(request: Any, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[str, Path]:
    """Name of a learner, and a run folder with a checkpoint of a policy that it trained a little."""
    folder = tmp_path_factory.mktemp("reference")
    algorithm = build(request.param, folder, "learn_reward=false", "seed=11")
    train(algorithm, 6)
    algorithm.save_to_path(str(folder / "checkpoints" / "checkpoint_000000192"))
    algorithm.stop()
    return request.param, folder


def fine_tune(name: str, folder: Path, reference: Path, *overrides: str) -> Any:
    options = ("learn_reward=false", f"algorithm.reference={reference}", *TUNED[name])
    return build(name, folder, *options, *overrides)


@pytest.mark.ray
def test_a_run_starts_as_its_reference_stays_near_it_and_resumes_without_it(
    reference: tuple[str, Path], tmp_path: Path
) -> None:
    name, folder = reference
    copied = shutil.copytree(folder, tmp_path / "reference")
    run = fine_tune(name, tmp_path / "run", copied, "algorithm.kl_coefficient=1e4", "seed=12")
    old = open_reference(run.settings, run.loop.spec).weights
    run.start_from_reference()
    state = module_state(run)
    policy = [key for key in old if key.startswith(("pi.", "pi_encoder.", "log_std"))]
    assert len(policy) >= 4
    acting = run.env_runner.module.get_state()
    for key in policy:
        np.testing.assert_array_equal(state[key], old[key], key)
        np.testing.assert_array_equal(acting[key], old[key], key)
    frozen = {key: value for key, value in state.items() if key.startswith("reference.")}
    optimizers = [o for _, o in run.learner_group._learner.get_optimizers_for_module("default_policy")]
    stepped = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    module = run.learner_group._learner.module["default_policy"]
    assert not stepped & {id(parameter) for parameter in module.reference.parameters()}
    assert stepped == {id(parameter) for parameter in module.parameters() if parameter.requires_grad}

    rows = train(run, 5)[1:]  # the replay takes sac's first round when the second is sampled
    assert all(-1e-6 < row["kl_to_reference"] < 0.02 for row in rows)
    trained = module_state(run)
    assert any(not np.array_equal(trained[key], old[key]) for key in policy)
    for key, value in frozen.items():
        np.testing.assert_array_equal(trained[key], value, key)
    run.save_to_path(str(tmp_path / "checkpoint"))
    run.reset_environments()
    expected_rows = train(run, 2)
    run.stop()

    shutil.rmtree(copied)
    resumed = fine_tune(name, tmp_path / "resumed", copied, "algorithm.kl_coefficient=1e4", "seed=12")
    resumed.restore_from_path(str(tmp_path / "checkpoint"))
    assert_same(module_state(resumed), trained)
    resumed.reset_environments()
    assert_same(train(resumed, 2), expected_rows)
    resumed.stop()


@pytest.mark.ray
def test_without_a_coefficient_it_moves_away(reference: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = reference
    run = fine_tune(name, tmp_path / "run", folder, "algorithm.kl_coefficient=0")
    rows = train(run, 5)  # the reference is taken over before the first round, unasked
    run.stop()
    assert max(row["kl_to_reference"] for row in rows[1:]) > 0.1


@pytest.mark.ray
def test_ppo_adds_the_mean_divergence_over_the_rows_that_count(tmp_path: Path, ray_cluster: None) -> None:
    run = build("ppo", tmp_path, "algorithm.reference=nothing", "learn_reward=false")
    learner = run.learner_group._learner
    module = learner.module["default_policy"]
    disturb(module)
    generator = torch.Generator().manual_seed(2)
    observations = torch.randn(NUM_ROWS, *module.observation_space.shape, generator=generator)
    mask = torch.rand(NUM_ROWS, generator=generator) < 0.7
    fwd_out = module.forward_train({Columns.OBS: observations})
    inputs = fwd_out[Columns.ACTION_DIST_INPUTS]
    batch = {
        Columns.OBS: observations,
        Columns.ACTIONS: torch.randint(2, (NUM_ROWS,), generator=generator),
        Columns.ACTION_DIST_INPUTS: inputs.detach(),
        Columns.ACTION_LOGP: torch.full((NUM_ROWS,), -0.7),
        Columns.LOSS_MASK: mask,
        "advantages": torch.randn(NUM_ROWS, generator=generator),
        "value_targets": torch.randn(NUM_ROWS, generator=generator),
    }
    losses = []
    for coefficient in (0.0, 3.0):
        config = learner.config.copy(copy_frozen=False)
        config.kl_coefficient = coefficient
        losses.append(
            learner.compute_loss_for_module(module_id="default_policy", config=config, batch=batch, fwd_out=fwd_out)
        )
    wanted = torch_kl(inputs, module.reference(observations), BUTTONS)[mask].mean()
    run.stop()
    assert float(wanted) > 0.01
    assert float((losses[1] - losses[0]).detach()) == pytest.approx(3 * float(wanted), rel=1e-4)


# ---------------------------------------------------------------- what is refused


def refusal(*overrides: str, kind: type[ThemisError] = ConfigError) -> str:
    with pytest.raises(kind) as caught:
        open_reference(*resolve(load_config(None, overrides)))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.ray
def test_a_reference_that_does_not_fit_is_refused_in_one_line(reference: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = reference
    other = {"sac": "ppo", "ppo": "sac"}[name]
    env = {"sac": "env.id=Pendulum-v1", "ppo": "env.id=CartPole-v1"}[name]
    same_actions = {"sac": "env.id=MountainCarContinuous-v0", "ppo": "env.id=Acrobot-v1"}[name]
    sizes, given = "algorithm.hidden_sizes=[32,32]", f"algorithm.reference={folder}"
    learner = f"algorithm.name={name}"
    config, spec = resolve(load_config(None, [env, sizes, given]))
    assert open_reference(config, spec).path == folder / "checkpoints" / "checkpoint_000000192"
    assert config.algorithm.kl_coefficient == {"ppo": 0.1, "sac": 1.0}[name]
    assert config.exploration.num_env_steps == config.exploration.num_seed_steps == 0
    checkpoint = f"algorithm.reference={folder}/checkpoints/checkpoint_000000192"
    assert open_reference(*resolve(load_config(None, [env, sizes, checkpoint]))).learner == name
    assert f"the learner must be the same, {other} here and {name}" in refusal(
        env, sizes, given, f"algorithm.name={other}"
    )
    assert "observations must be the same" in refusal(same_actions, sizes, given, learner)
    assert "algorithm.hidden_sizes must be the same, [16] here and [32, 32]" in refusal(
        env, "algorithm.hidden_sizes=[16]", given
    )
    copied = shutil.copytree(folder, tmp_path / "copied")
    trained, _ = resolve(load_config(None, [env, "env.normalize_observations=true"]))
    (copied / "config.yaml").write_text(dump_config(trained))
    for path in (copied, copied / "checkpoints" / "checkpoint_000000192"):
        given_copy = f"algorithm.reference={path}"
        message = refusal(env, sizes, given_copy)
        assert "env.normalize_observations must be the same, False here and True in the reference" in message
    (copied / "config.yaml").write_text("env: {id: x, unknown: 1}")
    assert "config.yaml cannot be read" in refusal(env, sizes, given_copy, kind=DataError)
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (state,) = damaged.rglob("default_policy/module_state.pkl")
    state.write_bytes(state.read_bytes()[:-50])
    assert "cannot be read" in refusal(env, sizes, f"algorithm.reference={damaged}", kind=CheckpointError)


@pytest.mark.parametrize(
    ("here", "there", "field"),
    [
        ({"wrappers": ("module:Name",)}, {}, "env.wrappers"),
        ({}, {"family_wrappers": False}, "env.family_wrappers"),
        ({"frame_stack": 2}, {}, "env.frame_stack"),
        ({"frame_stack": 1}, {}, None),
        ({}, {"normalize_observations": True}, "env.normalize_observations"),
        ({"kwargs": {"g": 5.0}, "horizon": 50, "fixed_horizon": False}, {}, None),
        ({"kwargs": {"g": 5.0}, "normalize_observations": True}, {"normalize_observations": True}, "env.kwargs"),
        ({"horizon": 50, "normalize_observations": True}, {"normalize_observations": True}, "env.horizon"),
        ({"horizon": 200, "normalize_observations": True}, {"normalize_observations": True}, None),
    ],
)
def test_what_the_observations_of_a_reference_mean_must_be_the_same(
    here: dict[str, Any], there: dict[str, Any], field: str | None
) -> None:
    spec = get_env_spec(EnvConfig(id="Pendulum-v1"))
    found = differing_meanings(*(EnvConfig(id="Pendulum-v1", **settings) for settings in (here, there)), spec)
    assert list(found) == ([] if field is None else [field])


def test_a_path_without_a_policy_is_refused(tmp_path: Path) -> None:
    message = refusal("env.id=Pendulum-v1", f"algorithm.reference={tmp_path}", kind=CheckpointError)
    assert "holds no policy" in message


def test_dqn_has_no_policy_distribution() -> None:
    message = refusal("env.id=CartPole-v1", "algorithm.name=dqn", "algorithm.reference=runs/x")
    assert "no policy distribution" in message
    assert "ppo, sac" in message


def test_a_coefficient_alone_is_refused() -> None:
    assert "without algorithm.reference" in refusal("env.id=Pendulum-v1", "algorithm.kl_coefficient=0.5")


def test_a_run_starts_from_one_policy() -> None:
    assert "one policy" in refusal("env.id=Pendulum-v1", "algorithm.reference=a", "snapshot=b")
