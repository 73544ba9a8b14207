"""Shapley values by weighted least squares, for all rows at once."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from themis_ray.explain.subject import Rows, Subject

__all__ = ["draw_coalitions", "shapley_values"]

ROWS_PER_PASS = 256


def shapley_values(
    subject: Subject,
    rows: Rows,
    baseline: tuple[Tensor, ...],
    groups: tuple[Tensor, ...],
    rng: np.random.Generator,
    num_coalitions: int | None = None,
) -> Tensor:
    """Returns the share (N, G) of each group of inputs in the difference to the baseline.

    phi = argmin over phi with sum(phi) = f(x) - f(baseline) of the sum over coalitions z of
    w(z) * (f(x where z, else baseline) - f(baseline) - z . phi)^2, with w the Shapley kernel (Lundberg and Lee 2017).
    Where there are no more coalitions than `num_coalitions` all of them are used and the values are exact; else they
    are drawn in pairs of complements (Covert and Lee 2021). All rows share them, so there is one system of equations
    with a right-hand side for every row.

    Args:
        subject: What is explained.
        rows: N of them.
        baseline: One row of inputs.
        groups: From `feature_groups`, G of them.
        rng: Draws the coalitions.
        num_coalitions: At most; None takes 2 * G + 256.
    """
    num_groups = 1 + max(int(part.max()) for part in groups)
    present, weights = draw_coalitions(num_groups, num_coalitions or 2 * num_groups + 256, rng)
    nothing = subject.evaluate(Rows(tuple(part.expand(len(rows), *part.shape[1:]) for part in baseline), rows.context))
    difference = (subject.evaluate(rows) - nothing).double()
    if num_groups == 1:
        return difference[:, None].float()
    values = _coalition_values(subject, rows, baseline, groups, torch.from_numpy(present)) - nothing
    return _solve(torch.from_numpy(present), torch.from_numpy(weights), values.double(), difference).float()


def draw_coalitions(
    num_groups: int, num_coalitions: int, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Returns coalitions (C, G), which groups are present in each, and their weights (C,).

    Neither the empty one nor that of all groups is among them: what they give is known.
    """
    if num_groups < 32 and 2**num_groups - 2 <= num_coalitions:
        numbers = np.arange(1, 2**num_groups - 1)
        present = (numbers[:, None] >> np.arange(num_groups)) & 1 == 1
        sizes = present.sum(axis=1)
        weights = np.array([1 / (math.comb(num_groups, size) * size * (num_groups - size)) for size in sizes])
        return present, weights / weights.sum()
    sizes = np.arange(1, num_groups)
    chances = 1.0 / (sizes * (num_groups - sizes))
    drawn = rng.choice(sizes, (num_coalitions + 1) // 2, p=chances / chances.sum())
    ranks = rng.random((len(drawn), num_groups)).argsort(axis=1)
    present = ranks < drawn[:, None]
    present = np.concatenate([present, ~present])
    return present, np.full(len(present), 1.0 / len(present))


def _coalition_values(
    subject: Subject, rows: Rows, baseline: tuple[Tensor, ...], groups: tuple[Tensor, ...], present: Tensor
) -> Tensor:
    """Returns f of every row under every coalition, (C, N)."""
    values = torch.empty(len(present), len(rows))
    size = max(1, ROWS_PER_PASS // len(rows))
    for start in range(0, len(present), size):
        part = present[start : start + size]
        inputs = []
        for given, nothing, group in zip(rows.inputs, baseline, groups, strict=True):
            is_present = part[:, group[0]].unsqueeze(1)
            inputs.append(torch.where(is_present, given, nothing).flatten(0, 1))
        context = tuple(one.expand(len(part), *one.shape).flatten(0, 1) for one in rows.context)
        values[start : start + size] = subject.evaluate(Rows(tuple(inputs), context)).view(len(part), -1)
    return values


def _solve(present: Tensor, weights: Tensor, values: Tensor, difference: Tensor) -> Tensor:
    """Returns phi (N, G); the last group gets what the others leave of the difference."""
    z = present.double()
    others, last = z[:, :-1] - z[:, -1:], z[:, -1:]
    target = values - last * difference
    root = weights.sqrt()[:, None]
    shares = torch.linalg.lstsq(others * root, target * root, driver="gelsd").solution.T
    return torch.cat([shares, (difference - shares.sum(dim=1))[:, None]], dim=1)
