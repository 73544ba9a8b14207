"""Fitting the reward ensemble to preferences, and saving what a fit leaves behind."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from themis_ray.data import LabelledPairs
from themis_ray.reward.ensemble import Inputs, RewardConfig, RewardEnsemble, left_probabilities

# Rows of one member per forward and backward pass on a CPU: more would fall out of the cache and cost page faults.
_MICRO_BATCH_ROWS_CPU = 2048
MAX_TIE_LOSS = 1.01 * float(np.log(2))


def make_optimizer(ensemble: RewardEnsemble, config: RewardConfig) -> torch.optim.Adam:
    """Returns the optimiser of all members; Adam works value by value, so the members do not touch each other."""
    return torch.optim.Adam(
        ensemble.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


def fit(
    ensemble: RewardEnsemble,
    optimizer: torch.optim.Optimizer,
    pairs: LabelledPairs,
    config: RewardConfig,
    rng: np.random.Generator,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Fits every member to the preferences by minibatch cross-entropy under the Bradley-Terry model.

    loss = - sum over members of mean over queries of [y log p + (1 - y) log(1 - p)], p = sigmoid(return of left -
    return of right), y the label (Christiano et al. 2017, B-Pref). Every member sees its own shuffle. Stops after the
    first pass whose mean accuracy over members is above `target_accuracy`, at the latest after `num_epochs` passes.
    Equal labels count in the loss and not in the accuracy; with nothing but ties it stops at 1.01 times the least
    loss there is, log 2.

    Args:
        ensemble: Changed in place.
        optimizer: From `make_optimizer`; changed in place.
        pairs: The labelled queries, N of them.
        config: Batch size, number of passes, target accuracy and memory limit.
        rng: Draws the shuffles.
        on_epoch: Called with the metrics so far after every pass.

    Returns:
        "loss" (per member and query, last pass), "accuracy" (last pass, taken before each step; nan with nothing but
        ties) and "num_epochs" (passes made). Without pairs: nan, nan and 0.
    """
    metrics = {"loss": float("nan"), "accuracy": float("nan"), "num_epochs": 0.0}
    num_pairs = len(pairs)
    if num_pairs == 0:
        return metrics
    inputs = ensemble.encode(pairs.observations, pairs.actions)
    if inputs.pixels is None:  # frames may not fit on a GPU: they follow batch by batch
        inputs = inputs.to(ensemble.device)
    sides = np.stack([pairs.left, pairs.right])
    micro_size = _micro_batch_size(ensemble, pairs.observations.shape[1], config)
    for epoch in range(config.num_epochs or ensemble.num_epochs):
        order = rng.permuted(np.tile(np.arange(num_pairs), (config.ensemble_size, 1)), axis=1)
        labels = pairs.labels[order]
        logits = [
            _gradient_step(ensemble, optimizer, inputs, sides[:, order[:, rows]], labels[:, rows], micro_size)
            for rows in _slices(num_pairs, config.batch_size)
        ]
        metrics = _epoch_metrics(torch.cat(logits, dim=1), labels)
        metrics["num_epochs"] = float(epoch + 1)
        if on_epoch is not None:
            on_epoch(metrics)
        is_all_ties = np.isnan(metrics["accuracy"])
        if metrics["accuracy"] > config.target_accuracy or (is_all_ties and metrics["loss"] < MAX_TIE_LOSS):
            break
    return metrics


def accuracy(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Returns the share of labels on whose side p(left) is, mean over members; nan with nothing but ties.

    Args:
        probabilities: (K, N) p(left) by member.
        labels: (N,) or (K, N); labels of exactly 0.5 (ties) are left out, a p(left) of exactly 0.5 is wrong.
    """
    labels = np.broadcast_to(labels, probabilities.shape)
    is_decided = labels != 0.5
    if not is_decided.any():
        return float("nan")
    is_right = (probabilities - 0.5) * (labels - 0.5) > 0
    return float(is_right[is_decided].mean())


def ensemble_state(ensemble: RewardEnsemble, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns weights and optimiser state as numpy arrays and plain values that pickle; independent copies."""
    return {"weights": _to_numpy(ensemble.state_dict()), "optimizer": _to_numpy(optimizer.state_dict())}


def load_ensemble_state(ensemble: RewardEnsemble, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restores what `ensemble_state` returned, bit for bit: a continued fit equals one that never stopped.

    Raises:
        RuntimeError, ValueError: The state is of an ensemble of another shape.
    """
    ensemble.load_state_dict(_to_torch(state["weights"]))
    optimizer.load_state_dict(_to_torch(state["optimizer"]))


def _gradient_step(
    ensemble: RewardEnsemble,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    sides: NDArray[np.int64],
    labels: NDArray[np.float32],
    micro_size: int,
) -> Tensor:
    """Makes one optimiser step on the queries `sides` (2, K, B) with labels (K, B); returns their logits (K, B)."""
    rows, targets = torch.from_numpy(sides), torch.from_numpy(labels).to(ensemble.device)
    batch_size = targets.shape[1]
    optimizer.zero_grad()
    logits = []
    for part in _slices(batch_size, micro_size):
        margin = _pair_margins(ensemble, inputs, rows[:, :, part])
        loss = F.binary_cross_entropy_with_logits(margin, targets[:, part], reduction="sum") / batch_size
        loss.backward()  # type: ignore[no-untyped-call]
        logits.append(margin.detach())
    optimizer.step()
    return torch.cat(logits, dim=1)


def _pair_margins(ensemble: RewardEnsemble, inputs: Inputs, sides: Tensor) -> Tensor:
    """Returns the predicted return of left minus that of right, (K, B), for segment rows `sides` (2, K, B).

    Both sides of all members go through the networks in one forward pass.
    """
    _, ensemble_size, batch_size = sides.shape
    both = sides.transpose(0, 1).reshape(ensemble_size, 2 * batch_size).to(inputs.features.device)
    rewards = ensemble.evaluate(inputs.gather(both).flatten(1, 2).to(ensemble.device))
    left, right = rewards.view(ensemble_size, 2, batch_size, -1).sum(dim=3).unbind(dim=1)
    return left - right


def _micro_batch_size(ensemble: RewardEnsemble, length: int, config: RewardConfig) -> int:
    """Returns how many queries go through the networks at once; gradients of several such parts are added up."""
    num_rows = config.max_batch_bytes // (2 * ensemble.bytes_per_row)  # activations and their gradients
    if ensemble.device.type == "cpu":
        num_rows = min(num_rows, _MICRO_BATCH_ROWS_CPU)
    return max(1, num_rows // (2 * length))


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _epoch_metrics(logits: Tensor, labels: NDArray[np.float32]) -> dict[str, float]:
    loss = F.binary_cross_entropy_with_logits(logits.cpu(), torch.from_numpy(labels))
    margins = logits.cpu().numpy()
    return {"loss": float(loss), "accuracy": accuracy(left_probabilities(margins, np.zeros_like(margins)), labels)}


def _to_numpy(tree: Any) -> Any:
    match tree:
        case Tensor():
            return tree.detach().cpu().numpy().copy()
        case dict():
            return {key: _to_numpy(value) for key, value in tree.items()}
        case list() | tuple():
            return type(tree)(_to_numpy(value) for value in tree)
    return tree


def _to_torch(tree: Any) -> Any:
    match tree:
        case np.ndarray():
            return torch.tensor(tree)
        case dict():
            return {key: _to_torch(value) for key, value in tree.items()}
        case list() | tuple():
            return type(tree)(_to_torch(value) for value in tree)
    return tree
