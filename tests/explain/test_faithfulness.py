import dataclasses

import numpy as np
import pytest
import torch
from explain_subjects import (
    KINDS,
    draw_steps,
    function_subject,
    make_ensemble,
    make_spec,
    make_subject,
    network_subject,
)
from scipy.stats import spearmanr
from torch import Tensor, nn

from themis_ray.explain import METHODS, Rows, Subject, attribute, baseline_inputs, reward_subject
from themis_ray.explain.faithfulness import (
    FLOOR,
    differing_groups,
    directed_scores,
    faithfulness,
    group_sums,
    infidelity,
    max_sensitivity,
    randomised,
    rank_correlation,
    removal_curves,
    true_input_agreement,
)
from themis_ray.explain.job import Job
from themis_ray.explain.methods import Method, attribute_rows

torch.set_num_threads(1)
WEIGHTS = [0.5, -0.4, 0.3, -0.2, 0.1, 0.05]
NUM_ROWS = 40


class Linear(nn.Module):
    def forward(self, observations: Tensor) -> Tensor:
        return observations @ torch.tensor(WEIGHTS)


def magnitude(job: Job) -> tuple[Tensor, ...]:
    """Ignores what is explained."""
    return tuple(part.abs() for part in job.rows.inputs)


def make_job(subject: Subject, seed: int = 0, baseline: str = "zero") -> Job:
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(NUM_ROWS, 6)).astype(np.float32), np.zeros(NUM_ROWS, np.int64)
    rows = subject.read(*steps)
    return Job(subject, rows, baseline_inputs(subject, rows, baseline), rows, rng)


def areas(job: Job, scores: Tensor) -> tuple[float, float]:
    curves = removal_curves(job, scores)
    return curves.deletion_area, curves.insertion_area


def measure(subject: Subject, other: Subject, methods: list[str], seed: int = 0, **options):
    rng = np.random.default_rng(1)
    steps = rng.normal(size=(NUM_ROWS, 6)).astype(np.float32), np.zeros(NUM_ROWS, np.int64)
    rows = faithfulness(subject, other, *steps, steps, np.random.default_rng(seed), methods, **options)
    return {row.method: row for row in rows}


# ---------------------------------------------------------------- deletion and insertion


def test_the_true_ranking_has_the_least_deletion_and_the_largest_insertion_area() -> None:
    job = make_job(network_subject(WEIGHTS))
    parts = (job.rows.inputs[0] * torch.tensor(WEIGHTS),)
    deletion, insertion = areas(job, directed_scores(job, parts, is_signed=True))
    for seed in range(20):
        draws = torch.from_numpy(np.random.default_rng(seed).normal(size=(NUM_ROWS, 6)))
        random_deletion, random_insertion = areas(job, draws)
        assert deletion < random_deletion - 0.1
        assert insertion > random_insertion + 0.1
    worst_deletion, worst_insertion = areas(job, -directed_scores(job, parts, is_signed=True))
    assert worst_deletion > insertion - 1e-5 > 0.5
    assert worst_insertion < deletion + 1e-5 < 0.5


def test_curves_lead_from_all_of_the_difference_to_none_and_back() -> None:
    job = make_job(network_subject(WEIGHTS), baseline="mean")
    curves = removal_curves(job, torch.rand(NUM_ROWS, 6))
    np.testing.assert_allclose(curves.shares, np.arange(7) / 6, rtol=1e-6)
    np.testing.assert_allclose(curves.deletion[[0, -1]], [1, 0], atol=1e-5)
    np.testing.assert_allclose(curves.insertion[[0, -1]], [0, 1], atol=1e-5)


def test_curves_of_many_rows_are_those_of_single_rows_weighted_by_their_differences() -> None:
    job = make_job(network_subject(WEIGHTS))
    scores = torch.rand(NUM_ROWS, 6)
    whole = removal_curves(job, scores)
    sizes = job.subject.evaluate(job.rows).abs()
    singles = [
        removal_curves(dataclasses.replace(job, rows=job.rows.take(slice(i, i + 1))), scores[i : i + 1]).deletion
        for i in range(NUM_ROWS)
    ]
    mean = (torch.stack(singles) * sizes[:, None]).sum(dim=0) / sizes.sum()
    np.testing.assert_allclose(whole.deletion, mean, atol=1e-5)


def test_in_a_row_below_the_baseline_what_pulls_down_ranks_first() -> None:
    subject = network_subject([1.0, 1.0])
    rows = subject.read(np.array([[-2.0, 1.0], [2.0, -1.0]], np.float32), np.zeros(2, np.int64))
    job = Job(subject, rows, (torch.zeros(1, 2),), rows, np.random.default_rng(0))
    scores = directed_scores(job, rows.inputs, is_signed=True)
    assert scores.tolist() == [[2.0, -1.0], [2.0, -1.0]]
    assert directed_scores(job, rows.inputs, is_signed=False).tolist() == rows.inputs[0].tolist()


# ---------------------------------------------------------------- infidelity and sensitivity


@pytest.mark.parametrize("method", ["input_x_gradient", "integrated_gradients", "kernel_shap"])
def test_a_linear_function_is_told_without_infidelity(method: str) -> None:
    job = make_job(function_subject(Linear(), 6))
    assert float(infidelity(job, attribute_rows(METHODS[method], job)).max()) < 1e-5


def test_infidelity_does_not_depend_on_scale_and_is_1_for_nothing() -> None:
    job = make_job(network_subject(WEIGHTS))
    parts = attribute_rows(METHODS["saliency"], job)

    def measured(scale: float) -> Tensor:
        return infidelity(dataclasses.replace(job, rng=np.random.default_rng(3)), (scale * parts[0],))

    torch.testing.assert_close(measured(1.0), measured(100.0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(measured(0.0), 1.0)
    assert 0.1 < float(measured(1.0).mean()) < 1.0


def test_infidelity_says_nothing_where_nothing_changes() -> None:
    job = make_job(network_subject([0.0] * 6))
    assert infidelity(job, job.rows.inputs).isnan().all()


def test_sensitivity_is_0_for_the_gradient_of_a_linear_function_and_grows_with_the_neighbourhood() -> None:
    job = make_job(function_subject(Linear(), 6))
    assert float(max_sensitivity(job, METHODS["saliency"]).max()) < 1e-6
    near, far = (float(max_sensitivity(job, METHODS["input_x_gradient"], radius=radius).mean()) for radius in (0.1, 1))
    assert 0.01 < near < 0.3 < far


# ---------------------------------------------------------------- randomised weights


def test_randomised_weights_are_the_same_numbers_in_another_order() -> None:
    ensemble = make_ensemble("vector")
    before = {name: value.clone() for name, value in ensemble.state_dict().items()}
    changed = randomised(ensemble, np.random.default_rng(0)).state_dict()
    for name, value in ensemble.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(changed[name].flatten().sort().values, value.flatten().sort().values)
    assert not torch.equal(changed["network.weights.0"], before["network.weights.0"])


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_a_subject_is_randomised(kind: str) -> None:
    subject = make_subject(kind)
    other = reward_subject(randomised(make_ensemble(kind), np.random.default_rng(0)), make_spec(kind))
    rows = subject.read(*draw_steps(kind, 8))
    changed = other.evaluate(rows)
    assert float((changed - subject.evaluate(rows)).abs().max()) > 1e-3
    torch.testing.assert_close(other.plain(*rows.inputs), changed, rtol=1e-3, atol=1e-4)
    if other.split is not None:
        torch.testing.assert_close(other.split.tail(*other.split.stem(*rows.inputs)), changed, rtol=1e-3, atol=1e-4)


def test_a_method_that_ignores_the_weights_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "magnitude", Method(magnitude, "", is_signed=False))
    others = network_subject([0.05, 0.5, -0.1, 0.4, 0.2, -0.3])
    rows = measure(network_subject(WEIGHTS), others, ["magnitude", "saliency"])
    assert rows["magnitude"].randomisation == pytest.approx(1.0)
    expected = spearmanr(np.abs(WEIGHTS), [0.05, 0.5, 0.1, 0.4, 0.2, 0.3]).statistic
    assert rows["saliency"].randomisation == pytest.approx(expected, abs=1e-4)
    assert abs(rows[FLOOR].randomisation) < 0.2


def test_rank_correlation_is_scipys() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 4, (20, 9)).astype(float), rng.normal(size=(20, 9))
    expected = [spearmanr(*pair).statistic for pair in zip(left, right, strict=True)]
    np.testing.assert_allclose(rank_correlation(torch.from_numpy(left), torch.from_numpy(right)), expected, atol=1e-9)
    assert rank_correlation(torch.zeros(1, 3), torch.rand(1, 3)).isnan().all()


def test_rank_correlation_leaves_groups_out_that_are_not_compared() -> None:
    rng = np.random.default_rng(0)
    left, right, is_counted = rng.normal(size=(20, 9)), rng.normal(size=(20, 9)), rng.random((20, 9)) < 0.7
    expected = [spearmanr(x[kept], y[kept]).statistic for x, y, kept in zip(left, right, is_counted, strict=True)]
    both = torch.from_numpy(left), torch.from_numpy(right)
    np.testing.assert_allclose(rank_correlation(*both, torch.from_numpy(is_counted)), expected, atol=1e-9)


def test_inputs_that_equal_the_baseline_do_not_make_two_networks_agree() -> None:
    steps = np.zeros((30, 6), np.float32), np.zeros(30, np.int64)
    steps[0][:, :2] = np.random.default_rng(0).normal(size=(30, 2))
    subject, other = network_subject(WEIGHTS), network_subject([-0.4, 0.5, *WEIGHTS[2:]])
    rows = faithfulness(subject, other, *steps, steps, np.random.default_rng(0), ["input_x_gradient"], baseline="zero")
    assert -1 <= rows[0].randomisation < 0.95
    job = dataclasses.replace(make_job(subject), rows=subject.read(*steps))
    assert differing_groups(job)[0].tolist() == [True, True, False, False, False, False]


# ---------------------------------------------------------------- what is known


def test_agreement_counts_rows_in_which_all_that_counts_comes_first() -> None:
    magnitudes = torch.tensor([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 1.0, 1.0]])
    assert true_input_agreement(magnitudes, torch.tensor([True, True, False])) == 0.25
    assert true_input_agreement(magnitudes, torch.tensor([True, False, False])) == 0.75
    each = torch.tensor([[True, True, False], [True, False, True], [False, False, True], [True, False, False]])
    assert true_input_agreement(magnitudes, each) == 1.0


def test_methods_agree_with_a_planted_function() -> None:
    subject, other = network_subject([0.0, 1.0, 0.0, 0.0, -0.8, 0.0]), network_subject(WEIGHTS)
    is_true = np.isin(np.arange(6), [1, 4])
    rows = measure(subject, other, ["integrated_gradients", "saliency", "kernel_shap"], is_true_input=is_true)
    assert {name: row.agreement for name, row in rows.items() if name != FLOOR} == dict.fromkeys(
        ["integrated_gradients", "saliency", "kernel_shap"], 1.0
    )
    chance = 1 / 15
    assert rows[FLOOR].agreement is not None
    assert rows[FLOOR].agreement < 4 * chance


# ---------------------------------------------------------------- the table


def test_good_methods_are_better_than_the_floor_in_every_column() -> None:
    rows = measure(network_subject(WEIGHTS), network_subject(WEIGHTS[::-1]), ["integrated_gradients", "kernel_shap"])
    floor = rows.pop(FLOOR)
    assert floor.agreement is None
    assert abs(floor.deletion - 0.5) < 0.15
    assert floor.sensitivity > 1
    for row in rows.values():
        assert row.deletion < floor.deletion - 0.2
        assert row.insertion > floor.insertion + 0.2
        assert row.infidelity < 0.05 < floor.infidelity
        assert row.sensitivity < 0.5
        assert row.ms_per_row > 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_observation_has_a_table(kind: str) -> None:
    subject = make_subject(kind)
    other = reward_subject(randomised(make_ensemble(kind), np.random.default_rng(0)), make_spec(kind))
    steps, references = draw_steps(kind, 3, seed=1), draw_steps(kind, 10, seed=2)
    methods = ["integrated_gradients", "feature_ablation", "deep_lift"]
    rows = faithfulness(subject, other, *steps, references, np.random.default_rng(0), methods)
    assert [row.method for row in rows] == [*methods, FLOOR]
    for row in rows:
        figures = [row.deletion, row.insertion, row.infidelity, row.sensitivity, row.randomisation]
        assert np.isfinite(figures).all(), row
        assert 0 <= row.infidelity <= 1
        assert -1 <= row.randomisation <= 1


def test_the_same_generator_gives_the_same_table_and_leaves_the_shared_ones_alone() -> None:
    subjects = network_subject(WEIGHTS), network_subject(WEIGHTS[::-1])

    def table(seed: int):
        rows = measure(*subjects, ["gradient_shap", "saliency"], seed)
        return [dataclasses.replace(row, ms_per_row=0.0) for row in rows.values()]

    state = torch.get_rng_state()
    assert table(0) == table(0)
    assert table(0) != table(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_group_sums_add_up_inputs_of_a_group() -> None:
    groups = (torch.tensor([[0, 1, 0]]), torch.tensor([[2, 2]]))
    parts = (torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, -5.0]]))
    assert group_sums(parts, groups).tolist() == [[4.0, 2.0, -1.0]]


def test_context_such_as_the_chosen_action_is_read_along() -> None:
    subject = make_subject_with_context()
    steps = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), np.array([0, 1, 2, 1, 0])
    rows = faithfulness(subject, subject, *steps, steps, np.random.default_rng(0), ["integrated_gradients"])
    assert rows[0].infidelity < 1e-5
    assert rows[0].randomisation == pytest.approx(1.0)
    result = attribute(subject, *steps, references=steps, rng=np.random.default_rng(0))
    np.testing.assert_allclose(result.totals, result.values - result.baseline_values, atol=1e-5)


class Chosen(nn.Module):
    def forward(self, observations: Tensor, chosen: Tensor) -> Tensor:
        table = torch.tensor([[1.0, -1.0, 0.5], [0.2, 2.0, 0.0], [-1.0, 0.3, 0.3]])
        return (observations * table[chosen]).sum(dim=1)


def make_subject_with_context() -> Subject:
    plain = function_subject(Chosen(), 3)

    def read(observations: np.ndarray, actions: np.ndarray):
        return Rows(plain.read(observations, actions).inputs, (torch.tensor(actions),))

    return dataclasses.replace(plain, read=read)
