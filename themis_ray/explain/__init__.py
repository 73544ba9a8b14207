"""Why the model says so: attributions, what they look like over a clip, and a page of them."""

from themis_ray.explain.baselines import BASELINES, baseline_inputs
from themis_ray.explain.cells import draw_cells, grid_views
from themis_ray.explain.charts import draw_bars, draw_curve, draw_legend, largest_inputs, shared_limits
from themis_ray.explain.drawing import ExplainedSegment, Look, Scales, add_up, draw_explanation, find_scales
from themis_ray.explain.faithfulness import FaithfulnessRow, faithfulness, randomised
from themis_ray.explain.features import feature_groups
from themis_ray.explain.gradients import path_gradients
from themis_ray.explain.influence import Prediction, Snapshot, preference_influence, state_influence, strongest
from themis_ray.explain.kernel_shap import shapley_values
from themis_ray.explain.methods import DEFAULT_METHOD, METHODS, Attribution, attribute, check_method, fitting_methods
from themis_ray.explain.page import ExplainedClip, ExplainedPair, InfluenceRow, PageSection, write_explanation_page
from themis_ray.explain.pictures import draw_heatmap, film_strip, pair_layout, shared_scale, shrink, write_picture
from themis_ray.explain.plain import PlainEnsemble, plain_ensemble
from themis_ray.explain.subject import Rows, Split, Subject, as_floats, reward_subject

__all__ = [
    "BASELINES",
    "DEFAULT_METHOD",
    "METHODS",
    "Attribution",
    "ExplainedClip",
    "ExplainedPair",
    "ExplainedSegment",
    "FaithfulnessRow",
    "InfluenceRow",
    "Look",
    "PageSection",
    "PlainEnsemble",
    "Prediction",
    "Rows",
    "Scales",
    "Snapshot",
    "Split",
    "Subject",
    "add_up",
    "as_floats",
    "attribute",
    "baseline_inputs",
    "check_method",
    "draw_bars",
    "draw_cells",
    "draw_curve",
    "draw_explanation",
    "draw_heatmap",
    "draw_legend",
    "faithfulness",
    "feature_groups",
    "film_strip",
    "find_scales",
    "fitting_methods",
    "grid_views",
    "largest_inputs",
    "pair_layout",
    "path_gradients",
    "plain_ensemble",
    "preference_influence",
    "randomised",
    "reward_subject",
    "shapley_values",
    "shared_limits",
    "shared_scale",
    "shrink",
    "state_influence",
    "strongest",
    "write_explanation_page",
    "write_picture",
]
