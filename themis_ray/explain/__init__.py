"""Why the model says so: attributions, what they look like over a clip, and a page of them."""

from themis_ray.explain.baselines import BASELINES, baseline_inputs
from themis_ray.explain.features import feature_groups
from themis_ray.explain.gradients import path_gradients
from themis_ray.explain.kernel_shap import shapley_values
from themis_ray.explain.methods import DEFAULT_METHOD, METHODS, Attribution, attribute, check_method, fitting_methods
from themis_ray.explain.plain import PlainEnsemble, plain_ensemble
from themis_ray.explain.subject import Rows, Split, Subject, as_floats, reward_subject

__all__ = [
    "BASELINES",
    "DEFAULT_METHOD",
    "METHODS",
    "Attribution",
    "PlainEnsemble",
    "Rows",
    "Split",
    "Subject",
    "as_floats",
    "attribute",
    "baseline_inputs",
    "check_method",
    "feature_groups",
    "fitting_methods",
    "path_gradients",
    "plain_ensemble",
    "reward_subject",
    "shapley_values",
]
