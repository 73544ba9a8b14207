"""Methods that change what passes through the layers of a network, through Captum."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from captum.attr import LRP, DeepLift, DeepLiftShap, GuidedBackprop, LayerGradCam
from captum.attr._utils.lrp_rules import EpsilonRule
from torch import Tensor, nn

from themis_ray.explain.gradients import NUM_SHAP_BASELINES
from themis_ray.explain.job import Job
from themis_ray.explain.subject import Subject

__all__ = [
    "deep_lift",
    "deep_lift_shap",
    "guided",
    "guided_grad_cam",
    "lrp",
    "needs_convolution",
    "needs_network_output",
    "needs_relu",
]


def guided(kind: Any) -> Callable[[Job], tuple[Tensor, ...]]:
    """Returns the method that Captum's class of guided gradients gives."""

    def attribute(job: Job) -> tuple[Tensor, ...]:
        return job.call(kind(copy.deepcopy(job.subject.plain)))

    return attribute


def guided_grad_cam(job: Job) -> tuple[Tensor, ...]:
    """Guided gradients where the last convolution speaks for the output (Selvaraju et al. 2017).

    Captum's own joins the two over channels-first pictures; here the channels are last.
    """
    network = copy.deepcopy(job.subject.plain)
    layer = list(_layers(network, nn.Conv2d))[-1]
    cam = LayerGradCam(network, layer).attribute(
        job.rows.inputs, additional_forward_args=job.rows.context or None, relu_attributions=True
    )
    guided = job.call(GuidedBackprop(network))
    size = job.rows.inputs[0].shape[1:3]
    wide = nn.functional.interpolate(cam.detach(), size, mode="bilinear", align_corners=False)
    return (guided[0] * wide.movedim(1, -1), *guided[1:])


def lrp(job: Job) -> tuple[Tensor, ...]:
    """Returns relevance by the epsilon rule."""
    network = copy.deepcopy(job.subject.plain)
    for layer in _layers(network, nn.LeakyReLU, nn.Flatten):
        layer.rule = EpsilonRule()  # hands on what it gets: neither mixes inputs
    return job.call(LRP(network))


def deep_lift(job: Job) -> tuple[Tensor, ...]:
    """Returns DeepLift against the baseline, by the rescale rule."""
    return job.call(DeepLift(copy.deepcopy(job.subject.plain)), baselines=job.baselines)


def deep_lift_shap(job: Job) -> tuple[Tensor, ...]:
    """Returns the mean of DeepLift over several stored steps as baselines."""
    references = job.some_references(NUM_SHAP_BASELINES)
    return job.call(DeepLiftShap(copy.deepcopy(job.subject.plain)), baselines=references)


# ---------------------------------------------------------------- what fits


def _layers(network: nn.Module, *kinds: type[nn.Module]) -> Iterator[nn.Module]:
    return (layer for layer in network.modules() if isinstance(layer, kinds))


def needs_relu(subject: Subject) -> str | None:
    """Tells why a method that changes gradients of ReLU does not fit; None where it does."""
    if any(_layers(subject.plain, nn.ReLU)):
        return None
    kinds = sorted({type(layer).__name__ for layer in _layers(subject.plain, nn.LeakyReLU, nn.Tanh)})
    return f"it changes the gradients of ReLU layers, and this network has {' and '.join(kinds)}"


def needs_convolution(subject: Subject) -> str | None:
    """Tells why a method that reads a convolution and ReLU does not fit; None where it does."""
    if subject.observation_kind not in ("image", "grid"):
        return f"it reads the last convolution of a picture, and observations are a {subject.observation_kind}"
    return needs_relu(subject)


def needs_network_output(subject: Subject) -> str | None:
    """Tells why a method that starts at one output of a network does not fit; None where it does."""
    if subject.is_network_output:
        return None
    return f"it passes an output of the last layer back, and the {subject.meaning} is computed from several"
