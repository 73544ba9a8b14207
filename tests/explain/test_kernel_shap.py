import itertools
import math

import numpy as np
import torch
from captum.attr import KernelShap
from explain_subjects import function_subject
from torch import Tensor, nn

from themis_ray.explain import Rows, shapley_values
from themis_ray.explain.kernel_shap import draw_coalitions

torch.set_num_threads(1)


class Interacting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] * x[:, 1] + torch.sin(x[:, 2]) - 2 * x[:, 3] * (x[:, 0] > 0)


def exact_values(function: nn.Module, row: Tensor, baseline: Tensor) -> list[float]:
    """The definition: mean over all orders of what an input adds to those before it."""
    count = len(row)
    totals = [0.0] * count
    for order in itertools.permutations(range(count)):
        inputs = baseline.clone()
        before = float(function(inputs[None]))
        for index in order:
            inputs[index] = row[index]
            after = float(function(inputs[None]))
            totals[index] += after - before
            before = after
    return [total / math.factorial(count) for total in totals]


def test_all_coalitions_of_few_groups_give_the_shapley_values() -> None:
    subject = function_subject(Interacting(), 4)
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    baseline = torch.tensor([[0.5, -1.0, 0.2, 0.1]])
    groups = (torch.arange(4)[None],)
    values = shapley_values(subject, Rows((rows,)), (baseline,), groups, np.random.default_rng(0))
    expected = [exact_values(subject.function, row, baseline[0]) for row in rows]
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_drawn_coalitions_come_near_and_always_add_up() -> None:
    weights = torch.linspace(-1, 1, 40)

    class Curved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh((x * weights).sum(1) / 3)

    subject = function_subject(Curved(), 40)
    rows = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    baseline, groups = torch.zeros(1, 40), (torch.arange(40)[None],)
    few = shapley_values(subject, Rows((rows,)), (baseline,), groups, np.random.default_rng(0))
    many = shapley_values(subject, Rows((rows,)), (baseline,), groups, np.random.default_rng(1), 20_000)
    np.testing.assert_allclose(few.sum(dim=1), subject.evaluate(Rows((rows,))), atol=1e-5)
    assert float((few - many).norm() / many.norm()) < 0.15


def test_captums_fit_of_one_row_at_a_time_comes_to_the_same() -> None:
    subject = function_subject(Interacting(), 4)
    rows = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    baseline, groups = torch.zeros(1, 4), (torch.arange(4)[None],)
    ours = shapley_values(subject, Rows((rows,)), (baseline,), groups, np.random.default_rng(0))
    torch.manual_seed(0)
    theirs = KernelShap(subject.function).attribute(rows, baseline, n_samples=2000)
    np.testing.assert_allclose(ours, theirs, atol=0.15)


def test_drawn_coalitions_follow_the_kernel_and_come_with_their_complements() -> None:
    present, weights = draw_coalitions(10, 500, np.random.default_rng(0))
    assert present.shape == (500, 10)
    assert (present[:250] == ~present[250:]).all()
    sizes = present.sum(axis=1)
    assert sizes.min() >= 1
    assert sizes.max() <= 9
    # Of the kernel's mass 0.2/1.13 lies on each of sizes 1 and 9.
    chances = np.array([1 / (size * (10 - size)) for size in range(1, 10)])
    assert abs((sizes == 1).mean() - chances[0] / chances.sum()) < 0.08
    np.testing.assert_allclose(weights.sum(), 1.0)
