"""The optimiser of the reward ensemble, and saving what a fit leaves behind."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from themis_ray.reward.config import RewardConfig
from themis_ray.reward.ensemble import RewardEnsemble


def make_optimizer(ensemble: RewardEnsemble, config: RewardConfig) -> torch.optim.Adam:
    """Returns the optimiser of all members; Adam works value by value, so the members do not touch each other."""
    return torch.optim.Adam(
        ensemble.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


def ensemble_state(ensemble: RewardEnsemble, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns weights and optimiser state as numpy arrays and plain values that pickle; independent copies."""
    return {"weights": _to_numpy(ensemble.state_dict()), "optimizer": _to_numpy(optimizer.state_dict())}


def load_ensemble_state(ensemble: RewardEnsemble, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restores what `ensemble_state` returned, bit for bit: a continued fit equals one that never stopped.

    Step size and weight decay stay those of `optimizer`, which the settings decide.

    Raises:
        RuntimeError, ValueError: The state is of an ensemble of another shape.
    """
    # States of versions without these buffers keep those of a fresh ensemble.
    ensemble.load_state_dict({**dict(ensemble.named_buffers()), **_to_torch(state["weights"])})
    own = [{key: group[key] for key in ("lr", "weight_decay")} for group in optimizer.param_groups]
    optimizer.load_state_dict(_to_torch(state["optimizer"]))
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)


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
