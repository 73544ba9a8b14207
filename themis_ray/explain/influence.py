"""Which stored preferences, or which stored states, moved a prediction: TracInCP on the last layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from captum.influence import TracInCPFast
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from themis_ray.data import LabelledPairs
from themis_ray.explain.plain import PlainEnsemble, plain_ensemble
from themis_ray.reward import RewardEnsemble

__all__ = ["Prediction", "Snapshot", "preference_influence", "state_influence", "strongest"]

Array = NDArray[Any]


class Snapshot(NamedTuple):
    """A reward ensemble as it was in the middle of a run."""

    ensemble: RewardEnsemble
    is_fitted: NDArray[np.bool_]
    """(N,), which of the preferences it had been fitted to."""


class Prediction(NamedTuple):
    """A sum of predicted returns."""

    observations: Array
    """(S, L, *observation_shape)."""
    actions: Array
    """(S, L, *action_shape)."""
    signs: Sequence[float]
    """(S,), with which sign the return of each segment counts: 1 for a segment; 1 and -1 for the log-odds of a pair."""


def preference_influence(
    snapshots: Sequence[Snapshot], pairs: LabelledPairs, predictions: Sequence[Prediction]
) -> NDArray[np.float64]:
    """Returns how far each of N preferences moved each of T predictions, (T, N); positive where it raised it.

    - sum over snapshots of the gradient of the prediction times the gradient of the preference's loss, both with
    respect to the last layer of every member (TracInCP, Pruthi et al. 2020, on the layer that TracInCPFast takes). A
    preference counts in those snapshots that had been fitted to it. The learning rate is left out, as it is the same
    for all.

    Args:
        snapshots: Of one run, at different times.
        pairs: The preferences.
        predictions: What was predicted.
    """
    influence = np.zeros((len(predictions), len(pairs)))
    for ensemble, is_fitted in snapshots:
        plain = plain_ensemble(ensemble)
        gradients, returns = _return_gradients(ensemble, plain, pairs.observations, pairs.actions)
        probabilities = torch.sigmoid(returns[:, pairs.left] - returns[:, pairs.right])
        slopes = (probabilities - torch.from_numpy(pairs.labels)) * torch.from_numpy(pairs.weights)
        losses = slopes[..., None] * (gradients[:, pairs.left] - gradients[:, pairs.right])
        for row, prediction in enumerate(predictions):
            raised, _ = _return_gradients(ensemble, plain, prediction.observations, prediction.actions)
            signed = (raised * torch.tensor(prediction.signs)[:, None]).sum(dim=1)
            moved = -torch.einsum("kf,knf->n", signed, losses).double().numpy()
            influence[row] += np.where(is_fitted, moved, 0.0)
    return influence


def state_influence(
    networks: Sequence[tuple[nn.Module, nn.Linear]],
    loss: Callable[[Tensor, Tensor], Tensor],
    states: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor],
) -> NDArray[np.float64]:
    """Returns how alike stored states and queries pull at the last layer, (Q, S), through Captum's TracInCPFast.

    sum over networks of the gradient of the query's loss times the gradient of the state's loss. Positive: learning to
    do in that state what was done there makes the network do more of what it does in the query.

    Args:
        networks: One for each checkpoint, with its last layer.
        loss: Outputs (N, *) and targets (N, *) to a sum over rows.
        states: S observations and targets.
        queries: Q observations and targets.
    """
    total = np.zeros((len(queries[0]), len(states[0])))
    for network, last_layer in networks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tracer = TracInCPFast(
                network,
                last_layer,
                TensorDataset(*states),
                checkpoints=["as it is"],
                checkpoints_load_func=lambda *_: 1.0,
                loss_fn=loss,
                batch_size=256,
            )
            total += tracer.influence(queries).detach().double().numpy()
    return total


def strongest(influence: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Returns the columns of the largest magnitudes of a row (N,), largest first, at most `count`."""
    order: NDArray[np.int64] = np.argsort(-np.abs(influence), kind="stable")[:count]
    return order


def _return_gradients(
    ensemble: RewardEnsemble, plain: PlainEnsemble, observations: Array, actions: Array
) -> tuple[Tensor, Tensor]:
    """Returns the gradient of each segment's return with respect to each member's last layer, and the returns.

    A member's reward is tanh(w . h + b), so the gradient is the sum over steps of (1 - reward^2) * (h, 1).

    Args:
        ensemble: Encodes actions.
        plain: Its layers.
        observations: (S, L, *observation_shape).
        actions: (S, L, *action_shape).

    Returns:
        (K, S, F + 1) and (K, S).
    """
    num_segments, length = observations.shape[:2]
    flat = torch.tensor(observations.reshape(num_segments * length, *observations.shape[2:]), dtype=torch.float32)
    encoded = ensemble.encode_actions(torch.tensor(actions).reshape(num_segments * length, -1))
    with torch.no_grad():
        hidden, rewards = plain.last_activations(flat, encoded)
        hidden = torch.cat([hidden, torch.ones_like(hidden[..., :1])], dim=2)
        gradients = (1 - rewards**2)[..., None] * hidden
    shape = (len(rewards), num_segments, length)
    return gradients.view(*shape, -1).sum(dim=2), rewards.view(shape).sum(dim=2)
