import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, NoiseTunnel, Saliency
from explain_subjects import (
    KINDS,
    SPACES,
    draw_steps,
    function_subject,
    make_ensemble,
    make_spec,
    make_subject,
    network_subject,
)
from torch import nn

from themis_ray.errors import ConfigError, UnknownNameError
from themis_ray.explain import (
    METHODS,
    attribute,
    baseline_inputs,
    check_method,
    fitting_methods,
    path_gradients,
    plain_ensemble,
    reward_subject,
)
from themis_ray.explain.seeding import seeded_globals

torch.set_num_threads(1)


def explain(kind: str, method: str, count: int = 5, seed: int = 0):
    return attribute(
        make_subject(kind),
        *draw_steps(kind, count, seed=1),
        method=method,
        references=draw_steps(kind, 20, seed=2),
        rng=np.random.default_rng(seed),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_plain_layers_compute_the_ensembles_mean(kind: str) -> None:
    ensemble = make_ensemble(kind)
    steps = draw_steps(kind, 12)
    rows = reward_subject(ensemble, make_spec(kind)).read(*steps)
    plain = plain_ensemble(ensemble)(*rows.inputs)
    np.testing.assert_allclose(plain, ensemble.predict(*steps), rtol=1e-4, atol=1e-5)
    assert np.ptp(ensemble.predict(*steps)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_attributes_to_every_input_or_says_why_not(kind: str, method: str) -> None:
    subject = make_subject(kind)
    if METHODS[method].misfit(subject) is not None:
        with pytest.raises(ConfigError, match=f"{method} cannot explain .* Use integrated_gradients, kernel_shap"):
            check_method(method, subject)
        return
    result = explain(kind, method)
    assert result.observations.shape == (5, *SPACES[kind][0].shape)
    assert result.actions is not None
    assert result.actions.shape == (5, 2 if kind == "vector" else 3)
    assert np.isfinite(result.observations).all()
    assert np.isfinite(result.actions).all()
    assert np.abs(result.observations).max() > 0
    steps = draw_steps(kind, 5, seed=1)
    np.testing.assert_allclose(result.values, make_ensemble(kind).predict(*steps), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.is_complete])
def test_complete_methods_add_up_to_the_difference_to_the_baseline(kind: str, method: str) -> None:
    result = explain(kind, method)
    difference = result.values - result.baseline_values
    magnitudes = np.abs(result.observations.reshape(5, -1)).sum(axis=1) + np.abs(result.actions).sum(axis=1)
    allowed = 0.0026 * magnitudes + 1e-5
    assert (np.abs(result.totals - difference) <= allowed).all()


@pytest.mark.parametrize("method", fitting_methods(make_subject("image")))
def test_the_same_generator_gives_the_same_attribution(method: str) -> None:
    np.testing.assert_array_equal(explain("image", method).observations, explain("image", method).observations)


@pytest.mark.parametrize("kind", ["image", "grid"])
def test_integrated_gradients_behind_the_first_layer_equal_captums_on_the_whole_network(kind: str) -> None:
    subject = make_subject(kind)
    assert subject.split is not None
    rows = subject.read(*draw_steps(kind, 3, seed=1))
    baseline = baseline_inputs(subject, rows)
    baselines = tuple(part.expand(3, *part.shape[1:]) for part in baseline)
    whole = IntegratedGradients(subject.function).attribute(rows.inputs, baselines, n_steps=20, method="riemann_middle")
    for ours, theirs in zip(path_gradients(subject, rows, baseline, 20), whole, strict=True):
        assert float(theirs.abs().max()) > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_integrated_gradients_are_near_those_of_many_more_steps(kind: str) -> None:
    subject = make_subject(kind)
    rows = subject.read(*draw_steps(kind, 5, seed=1))
    baseline = baseline_inputs(subject, subject.read(*draw_steps(kind, 20, seed=2)))
    many = path_gradients(subject, rows, baseline, 1000)[0].flatten(1)
    few = torch.from_numpy(explain(kind, "integrated_gradients").observations).flatten(1)
    assert float(((few - many).norm(dim=1) / many.norm(dim=1)).mean()) < 0.1


@pytest.mark.parametrize("method", sorted({*fitting_methods(make_subject("vector"))}))
def test_an_input_that_plays_no_part_gets_nothing(method: str) -> None:
    subject = network_subject([2.0, 0.0, -1.0])
    draws = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    nothing = np.zeros(20, np.int64)
    result = attribute(
        subject, draws, nothing, method=method, references=(draws, nothing), rng=np.random.default_rng(1)
    )
    assert result.actions is None
    magnitudes = np.abs(result.observations).mean(axis=0)
    assert magnitudes[1] < 1e-5
    assert magnitudes[0] > magnitudes[2] > 0


class _LargeBesideSmall(nn.Module):
    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return torch.tanh(observations[:, 0]) + 0.001 * observations[:, 1]


def test_noise_is_in_the_unit_of_each_number_of_a_vector() -> None:
    references = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32) * np.float32([1, 200])
    steps, nothing = np.full((4, 2), 0.3, np.float32), np.zeros(200, np.int64)
    smooth, plain = (
        attribute(
            function_subject(_LargeBesideSmall(), 2),
            steps,
            nothing[:4],
            method=method,
            references=(references, nothing),
            rng=np.random.default_rng(0),
        ).observations
        for method in ("smooth_grad", "saliency")
    )
    np.testing.assert_allclose(smooth, plain, rtol=0.5)


@pytest.mark.parametrize("kind", ["image", "grid"])
def test_smooth_gradients_of_pictures_are_captums(kind: str) -> None:
    subject, references = make_subject(kind), draw_steps(kind, 20, seed=2)
    rows, compared = subject.read(*draw_steps(kind, 5, seed=1)), subject.read(*references)
    with seeded_globals(np.random.default_rng(0)):
        theirs = NoiseTunnel(Saliency(subject.function)).attribute(
            tuple(part.requires_grad_() for part in rows.inputs),
            nt_type="smoothgrad",
            nt_samples=16,
            nt_samples_batch_size=4,
            stdevs=tuple(0.1 * float(part.amax() - part.amin()) for part in compared.inputs),
        )
    ours = explain(kind, "smooth_grad").observations
    np.testing.assert_allclose(ours, theirs[0].detach(), rtol=1e-3, atol=1e-4 * float(theirs[0].max()))


@pytest.mark.parametrize("count", [1, 65])
def test_a_step_that_is_alone_is_permuted_with_stored_ones(count: int) -> None:
    result = explain("vector", "permutation_importance", count)
    assert np.abs(result.observations).sum(axis=1).min() > 0
    assert np.abs(result.actions).sum(axis=1).min() > 0


def test_a_method_that_nobody_knows_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="integrated_gradients"):
        check_method("integrated_gradient", make_subject("vector"))
