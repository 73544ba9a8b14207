"""Can an attribution be believed: what happens to the number when inputs go in the order in which it ranks them."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from captum import metrics
from numpy.typing import NDArray
from torch import Tensor, nn

from themis_ray.explain.baselines import baseline_inputs
from themis_ray.explain.job import Job
from themis_ray.explain.methods import Method, attribute_rows, check_method
from themis_ray.explain.subject import Rows, Subject

__all__ = [
    "FLOOR",
    "FaithfulnessRow",
    "RemovalCurves",
    "differing_groups",
    "directed_scores",
    "faithfulness",
    "group_sums",
    "infidelity",
    "max_sensitivity",
    "randomised",
    "rank_correlation",
    "removal_curves",
    "true_input_agreement",
]

FLOOR = "random"
MAX_CURVE_STEPS = 16
NUM_MASKS = 32
NUM_NEIGHBOURS = 8
NEIGHBOUR_RADIUS = 0.1
ROWS_PER_PASS = 256

Module = TypeVar("Module", bound=nn.Module)
Parts = tuple[Tensor, ...]


@dataclass(frozen=True)
class FaithfulnessRow:
    """How far a method can be believed on one subject.

    Attributes:
        method: A key of `METHODS`, or `FLOOR` for numbers drawn at random.
        deletion: Area under the deletion curve; less is better.
        insertion: Area under the insertion curve; more is better.
        infidelity: Share of the change that the attribution does not tell, from 0 to 1, mean over rows; less is better.
        sensitivity: Largest relative change of the attribution in a small neighbourhood, median over rows, for a row
            that is due next to nothing changes a thousandfold; less is better.
        randomisation: Rank correlation with the attribution of a network of other weights, mean over rows, of groups
            that differ from the baseline; near 0 is good.
        agreement: Share of steps on which the inputs that count are ranked first; None where nobody knows them.
        ms_per_row: Milliseconds that the attribution of one row took, of many rows together.
    """

    method: str
    deletion: float
    insertion: float
    infidelity: float
    sensitivity: float
    randomisation: float
    agreement: float | None
    ms_per_row: float


def faithfulness(
    subject: Subject,
    randomised_subject: Subject,
    observations: NDArray[Any],
    actions: NDArray[Any],
    references: tuple[NDArray[Any], NDArray[Any]],
    rng: np.random.Generator,
    methods: Sequence[str],
    *,
    baseline: str = "auto",
    is_true_input: NDArray[np.bool_] | None = None,
) -> list[FaithfulnessRow]:
    """Returns one row per method, and `FLOOR` last.

    All methods meet the same steps, the same masks and the same neighbours.

    Args:
        subject: What is explained.
        randomised_subject: The same with other weights, see `randomised`.
        observations: (N, *observation_shape), as stored.
        actions: (N, *action_shape), as stored.
        references: Observations and actions of stored steps, to compare with.
        rng: For every draw.
        methods: Keys of `METHODS` that fit the subject.
        baseline: A key of `BASELINES`.
        is_true_input: Which groups of `feature_groups` the number is known to depend on, (G,), or (N, G) where it
            differs from step to step; in vectors every number is a group, observations before actions.

    Raises:
        UnknownNameError, ConfigError: As in `check_method`.
    """
    chosen = {name: check_method(name, subject) for name in methods} | {FLOOR: Method(_draw, "Drawn at random.")}
    rows, compared = subject.read(observations, actions), subject.read(*references)
    job = Job(subject, rows, baseline_inputs(subject, compared, baseline), compared, rng)
    seeds = [int(seed) for seed in rng.integers(2**63, size=4)]
    is_true = None if is_true_input is None else torch.from_numpy(np.asarray(is_true_input))
    return [_row(name, method, job, randomised_subject, is_true, seeds) for name, method in chosen.items()]


def _row(
    name: str, method: Method, job: Job, randomised_subject: Subject, is_true: Tensor | None, seeds: Sequence[int]
) -> FaithfulnessRow:
    first, second, third, fourth = (replace(job, rng=np.random.default_rng(seed)) for seed in seeds)
    start = time.perf_counter()
    parts = attribute_rows(method, first)
    seconds = time.perf_counter() - start
    others = attribute_rows(method, replace(second, subject=randomised_subject))
    magnitudes, other_magnitudes = (group_sums([part.abs() for part in each], job.groups) for each in (parts, others))
    curves = removal_curves(job, directed_scores(job, parts, is_signed=method.is_signed))
    return FaithfulnessRow(
        method=name,
        deletion=curves.deletion_area,
        insertion=curves.insertion_area,
        infidelity=float(infidelity(third, parts).nanmean()),
        sensitivity=float(max_sensitivity(fourth, method).median()),
        randomisation=float(rank_correlation(magnitudes, other_magnitudes, differing_groups(job)).nanmean()),
        agreement=None if is_true is None else true_input_agreement(magnitudes, is_true),
        ms_per_row=1e3 * seconds / len(job.rows),
    )


def group_sums(parts: Sequence[Tensor], groups: Parts) -> Tensor:
    """Returns what each group of inputs is due together, (N, G).

    Args:
        parts: Attributions in the shapes of the inputs.
        groups: From `feature_groups`.
    """
    numbers = torch.cat([group.reshape(-1) for group in groups])
    flat = torch.cat([part.flatten(1) for part in parts], dim=1)
    return torch.zeros(len(flat), int(numbers.max()) + 1).index_add_(1, numbers, flat)


# ---------------------------------------------------------------- deletion and insertion


class RemovalCurves(NamedTuple):
    """What is left of the difference to the baseline when groups of inputs go, or come, in their order.

    All three have S numbers; a value of 1 is all of the difference, 0 none. Curves of rows are added up before they
    are divided by the differences of all rows, so that a row counts by its difference and none by next to nothing.
    """

    shares: Tensor
    """Share of the groups that are removed, or inserted; from 0 to 1."""
    deletion: Tensor
    """First groups removed from the row."""
    insertion: Tensor
    """First groups put into the baseline."""

    @property
    def deletion_area(self) -> float:
        """Less is better: what ranks first matters most."""
        return float(torch.trapezoid(self.deletion, self.shares))

    @property
    def insertion_area(self) -> float:
        """More is better."""
        return float(torch.trapezoid(self.insertion, self.shares))


def directed_scores(job: Job, parts: Sequence[Tensor], *, is_signed: bool) -> Tensor:
    """Returns by what groups are ranked, (N, G): how far each moved the number the way it went.

    The sums of signed attributions are taken times the sign of f(x) - f(baseline). Where the number fell below that of
    the baseline, the groups that pulled it down come first; those that held against it come last. Magnitudes are taken
    as they are, for they do not say which way.

    Args:
        job: Whose rows are attributed.
        parts: Attributions in the shapes of its inputs.
        is_signed: Whether they say up or down.
    """
    scores = group_sums(parts, job.groups)
    if not is_signed:
        return scores
    return scores * (job.subject.evaluate(job.rows) - _nothing(job)).sign()[:, None]


def removal_curves(job: Job, scores: Tensor) -> RemovalCurves:
    """Returns deletion and insertion curves (Petsiuk et al. 2018, RISE), groups of inputs for its pixels.

    A removed group takes its values of the baseline. Both curves take at most 16 steps.

    Args:
        job: What is explained, of which rows.
        scores: (N, G); the largest goes first.
    """
    num_groups = scores.shape[1]
    counts = torch.linspace(0, num_groups, min(num_groups, MAX_CURVE_STEPS) + 1).round()
    places = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    is_first = places < counts[:, None, None]
    nothing = _nothing(job)
    difference = job.subject.evaluate(job.rows) - nothing

    def remaining(is_kept: Tensor) -> Tensor:
        moved = (_values_of_kept(job, is_kept) - nothing) * difference.sign()
        return moved.sum(dim=1) / difference.abs().sum()

    return RemovalCurves(counts / num_groups, remaining(~is_first), remaining(is_first))


def _nothing(job: Job) -> Tensor:
    return job.subject.evaluate(Rows(job.baselines, job.rows.context))


def _keep(inputs: Parts, job: Job, is_kept: Tensor) -> Parts:
    """Returns inputs (*leading, *shape) whose groups that are not kept (*leading, G) take their baseline values."""
    return tuple(
        torch.where(is_kept[..., group[0]], given, nothing)
        for given, nothing, group in zip(inputs, job.baseline, job.groups, strict=True)
    )


def _values_of_kept(job: Job, is_kept: Tensor) -> Tensor:
    """Returns f (S, N) of every row with the groups that are kept, (S, N, G)."""
    size = max(1, ROWS_PER_PASS // len(job.rows))
    values = []
    for start in range(0, len(is_kept), size):
        part = is_kept[start : start + size]
        inputs = tuple(one.flatten(0, 1) for one in _keep(job.rows.inputs, job, part))
        context = tuple(one.expand(len(part), *one.shape).flatten(0, 1) for one in job.rows.context)
        values.append(job.subject.evaluate(Rows(inputs, context)).view(len(part), -1))
    return torch.cat(values)


# ---------------------------------------------------------------- Captum's metrics


def infidelity(job: Job, parts: Sequence[Tensor], num_masks: int = NUM_MASKS) -> Tensor:
    """Returns the share of the change that attributions do not tell, (N,), from 0 to 1; NaN where nothing changes.

    infidelity = E[(beta * phi . z - (f(x) - f(x without z)))^2] / E[(f(x) - f(x without z))^2] over random sets z of
    groups that take their baseline values (Yeh et al. 2019), with the beta that makes it least (Captum's `normalize`),
    so that methods of any unit, magnitudes too, can be compared. Attributions of 0 give 1.

    Args:
        job: What is explained, of which rows; its generator draws the sets, of all sizes alike.
        parts: Attributions in the shapes of the inputs.
        num_masks: Sets per row.
    """
    num_inputs, num_groups = len(job.rows.inputs), 1 + max(int(group.max()) for group in job.groups)
    num_draws = len(job.rows) * num_masks
    is_removed = torch.from_numpy(job.rng.random((num_draws, num_groups)) < job.rng.random((num_draws, 1)))

    def remove(inputs: Tensor | Parts) -> tuple[Parts, Parts]:
        together = inputs if isinstance(inputs, tuple) else (inputs,)
        removed = tuple(is_removed[:, group[0]].float() for group in job.groups)
        return removed, _keep(together, job, ~is_removed)

    def evaluate(*given: Tensor) -> Tensor:
        return job.subject.evaluate(Rows(given[:num_inputs], given[num_inputs:]))

    def measure(attributions: Parts) -> Tensor:
        result: Tensor = metrics.infidelity(
            evaluate,
            remove,
            job.rows.inputs,
            attributions,
            additional_forward_args=job.rows.context or None,
            n_perturb_samples=num_masks,
            normalize=True,
        )
        return result

    missed = measure(tuple(part.contiguous() for part in parts))
    change = measure(tuple(torch.zeros_like(part) for part in job.rows.inputs))
    return torch.where(change > 0, missed / change, torch.nan).clamp(0.0, 1.0)


def max_sensitivity(
    job: Job, method: Method, num_neighbours: int = NUM_NEIGHBOURS, radius: float = NEIGHBOUR_RADIUS
) -> Tensor:
    """Returns the largest change of attributions in a neighbourhood over their own size, (N,) (Yeh et al. 2019).

    max over x' of |phi(x') - phi(x)| / |phi(x)|. For a method that draws, it includes what another draw changes.

    Args:
        job: What is explained, of which rows; its generator draws the neighbours.
        method: How.
        num_neighbours: Per row.
        radius: How far each number of a neighbour is away at most, in standard deviations over stored steps.
    """
    reach = [radius * part.std(dim=0, keepdim=True, correction=0) for part in job.references.inputs]
    seed = int(job.rng.integers(2**63))

    def neighbours(inputs: Tensor | Parts) -> Parts:
        together = inputs if isinstance(inputs, tuple) else (inputs,)
        draws = [torch.from_numpy(job.rng.uniform(-1, 1, part.shape).astype(np.float32)) for part in together]
        return tuple(part + draw * far for part, draw, far in zip(together, draws, reach, strict=True))

    def explain(inputs: Parts, additional_forward_args: Parts = ()) -> Parts:
        near = replace(job, rows=Rows(inputs, additional_forward_args), rng=np.random.default_rng(seed))
        with torch.enable_grad():
            return tuple(part.contiguous() for part in attribute_rows(method, near))

    context = {"additional_forward_args": job.rows.context} if job.rows.context else {}
    result: Tensor = metrics.sensitivity_max(
        explain, job.rows.inputs, perturb_func=neighbours, n_perturb_samples=num_neighbours, **context
    )
    return result


# ---------------------------------------------------------------- what is known


def randomised(module: Module, rng: np.random.Generator) -> Module:
    """Returns a copy whose weights are shuffled, each parameter within itself: it knows nothing and is as loud.

    `reward_subject(randomised(ensemble, rng), spec)` is the subject whose attributions must differ (Adebayo et al.
    2018), whole and in its plain layers. Fresh weights would hardly move the number; buffers stay.

    Args:
        module: It is not changed.
        rng: Draws the order.
    """
    changed = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in changed.parameters():
            order = torch.from_numpy(rng.permutation(parameter.numel()))
            parameter.copy_(parameter.reshape(-1)[order].view_as(parameter))
    return changed


def rank_correlation(left: Tensor, right: Tensor, is_counted: Tensor | None = None) -> Tensor:
    """Returns Spearman's rank correlation of each row of (N, G) and (N, G), (N,); NaN where all numbers are equal.

    Args:
        left: Some numbers.
        right: Others of the same groups.
        is_counted: (N, G), which groups of each row are compared; None compares all.
    """
    counted = torch.ones_like(left, dtype=torch.float64) if is_counted is None else is_counted.double()

    def centred_ranks(numbers: Tensor) -> Tensor:
        # Half of what is equal counts as below, so that equal numbers share their mean rank.
        is_above = numbers[:, :, None] > numbers[:, None, :]
        is_equal = numbers[:, :, None] == numbers[:, None, :]
        ranks = ((is_above.double() + 0.5 * is_equal) * counted[:, None, :]).sum(dim=2)
        mean = (ranks * counted).sum(dim=1, keepdim=True) / counted.sum(dim=1, keepdim=True)
        return (ranks - mean) * counted

    one, other = centred_ranks(left), centred_ranks(right)
    return (one * other).sum(dim=1) / (one.square().sum(dim=1) * other.square().sum(dim=1)).sqrt()


def differing_groups(job: Job) -> Tensor:
    """Returns in which groups a row differs from the baseline, (N, G).

    Where it does not, most methods give 0 whatever the network: two networks agree about black blocks of a frame.
    """
    distances = [(given - nothing).abs() for given, nothing in zip(job.rows.inputs, job.baseline, strict=True)]
    return group_sums(distances, job.groups) > 0


def true_input_agreement(magnitudes: Tensor, is_true: Tensor) -> float:
    """Returns the share of rows in which every group that counts ranks above every group that does not.

    Args:
        magnitudes: (N, G), how much of each group a method makes.
        is_true: (G,) or (N, G), which count; some do and some do not in every row.
    """
    is_true = is_true.expand_as(magnitudes)
    least = magnitudes.where(is_true, torch.inf).amin(dim=1)
    most = magnitudes.where(~is_true, -torch.inf).amax(dim=1)
    return float((least > most).double().mean())


def _draw(job: Job) -> Parts:
    return tuple(torch.from_numpy(job.rng.standard_normal(part.shape, np.float32)) for part in job.rows.inputs)
