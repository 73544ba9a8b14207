import numpy as np
import pytest
import torch
from captum.influence import TracInCP
from explain_subjects import KINDS, draw_steps, make_ensemble
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from themis_ray.data import LabelledPairs
from themis_ray.explain import Prediction, Snapshot, plain_ensemble, preference_influence, state_influence, strongest

torch.set_num_threads(1)


def make_pairs(kind: str, num_pairs: int = 6, length: int = 4, seed: int = 0) -> LabelledPairs:
    rng = np.random.default_rng(seed)
    steps = draw_steps(kind, 2 * num_pairs * length, seed)
    observations, actions = (array.reshape(2 * num_pairs, length, *array.shape[1:]) for array in steps)
    return LabelledPairs(
        observations=observations,
        actions=actions,
        left=np.arange(num_pairs),
        right=np.arange(num_pairs, 2 * num_pairs),
        labels=rng.integers(0, 2, num_pairs).astype(np.float32),
        weights=rng.uniform(0.5, 1, num_pairs).astype(np.float32),
    )


class PairModel(nn.Module):
    """The margin of a pair of one ensemble, as Captum wants to see it: rows are pairs."""

    def __init__(self, ensemble, pairs: LabelledPairs) -> None:
        super().__init__()
        self.plain = plain_ensemble(ensemble).requires_grad_(True)
        self.ensemble, self.pairs = ensemble, pairs

    def returns(self, segments: Tensor) -> Tensor:
        observations = torch.tensor(self.pairs.observations, dtype=torch.float32)[segments].flatten(0, 1)
        actions = torch.tensor(self.pairs.actions)[segments].flatten(0, 1)
        encoded = self.ensemble.encode_actions(actions.reshape(len(actions), -1))
        _, rewards = self.plain.last_activations(observations, encoded)
        return rewards.view(len(rewards), len(segments), -1).sum(dim=2)

    def forward(self, sides: Tensor) -> Tensor:
        return (self.returns(sides[:, 0]) - self.returns(sides[:, 1])).T


def cross_entropy(margins: Tensor, labels: Tensor) -> Tensor:
    targets, weights = labels[:, :1].expand_as(margins), labels[:, 1:]
    losses = nn.functional.binary_cross_entropy_with_logits(margins, targets, reduction="none")
    return (losses * weights).sum(dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_influence_of_preferences_is_captums_tracincp_of_the_last_layers(kind: str) -> None:
    ensemble, pairs = make_ensemble(kind), make_pairs(kind)
    model = PairModel(ensemble, pairs)
    sides = torch.from_numpy(np.stack([pairs.left, pairs.right], axis=1))
    labels = torch.from_numpy(np.stack([pairs.labels, pairs.weights], axis=1))
    tracer = TracInCP(
        model,
        TensorDataset(sides, labels),
        checkpoints=["as it is"],
        checkpoints_load_func=lambda *_: 1.0,
        layers=[f"plain.members.{index}.last_layer" for index in range(3)],
        loss_fn=cross_entropy,
        test_loss_fn=lambda margins, _: -margins.sum(dim=1),  # what lowers this loss raises the margin
        batch_size=6,
    )
    theirs = tracer.influence((sides[:2], labels[:2])).detach().numpy()
    predictions = [Prediction(pairs.observations[[i, i + 6]], pairs.actions[[i, i + 6]], (1.0, -1.0)) for i in range(2)]
    ours = preference_influence([Snapshot(ensemble, np.ones(6, bool))], pairs, predictions)
    assert np.abs(ours).max() > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_a_preference_moves_nothing_before_it_was_fitted() -> None:
    pairs = make_pairs("vector")
    early, late = make_ensemble("vector", 1), make_ensemble("vector", 2)
    is_early = np.arange(6) < 2
    segment = Prediction(pairs.observations[:1], pairs.actions[:1], (1.0,))
    both = preference_influence([Snapshot(early, is_early), Snapshot(late, np.ones(6, bool))], pairs, [segment])
    last = preference_influence([Snapshot(late, np.ones(6, bool))], pairs, [segment])
    np.testing.assert_array_equal(both[0, 2:], last[0, 2:])
    assert (both[0, :2] != last[0, :2]).all()


def test_a_preference_pulls_its_own_margin_to_its_own_side() -> None:
    pairs = make_pairs("vector", num_pairs=20)
    own = [Prediction(pairs.observations[[i, i + 20]], pairs.actions[[i, i + 20]], (1.0, -1.0)) for i in range(20)]
    moved = preference_influence([Snapshot(make_ensemble("vector"), np.ones(20, bool))], pairs, own).diagonal()
    assert ((moved > 0) == (pairs.labels == 1)).all()


def test_states_that_look_the_same_and_did_the_same_pull_together() -> None:
    torch.manual_seed(0)
    body, last = nn.Sequential(nn.Linear(3, 8), nn.ReLU()), nn.Linear(8, 4)
    network = nn.Sequential(body, last)
    states = torch.randn(30, 3)
    actions = torch.randint(0, 4, (30,))
    loss = nn.CrossEntropyLoss(reduction="sum")
    found = state_influence([(network, last)], loss, (states, actions), (states[:5], actions[:5]))
    assert found.shape == (5, 30)
    # A state's pull on itself is the square of the length of its gradient; none pulls harder than both lengths allow.
    lengths = [float(gradient_length(network, last, states[i], actions[i])) for i in range(30)]
    np.testing.assert_allclose(found[range(5), range(5)], np.square(lengths[:5]), rtol=1e-4)
    assert (np.abs(found) <= np.outer(lengths[:5], lengths) * 1.0001).all()
    twice = state_influence([(network, last)] * 2, loss, (states, actions), (states[:5], actions[:5]))
    np.testing.assert_allclose(twice, 2 * found, rtol=1e-5)


def gradient_length(network: nn.Module, last: nn.Linear, state: Tensor, action: Tensor) -> Tensor:
    value = nn.functional.cross_entropy(network(state[None]), action[None])
    return torch.autograd.grad(value, last.weight)[0].norm()


def test_strongest_takes_the_largest_magnitudes() -> None:
    assert strongest(np.array([0.1, -3.0, 2.0, 0.0]), 2).tolist() == [1, 2]
