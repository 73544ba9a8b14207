"""Fitting the reward ensemble to preferences, and to ratings, judged steps and demonstrations beside them."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from themis_ray.data import EvaluatedSegments, LabelledPairs
from themis_ray.reward.config import RewardConfig
from themis_ray.reward.cropping import Windows, random_windows, window_mask
from themis_ray.reward.ensemble import RewardEnsemble, left_probabilities
from themis_ray.reward.labels import Examples, UnlabelledPairs
from themis_ray.reward.likelihoods import EvaluationLosses, preference_losses, spread
from themis_ray.reward.selection import (
    BestPass,
    TrainingData,
    accuracy,
    choose_examples,
    heldout_metrics,
    slices,
    training_data,
    without_weightless,
)
from themis_ray.reward.steps import SegmentSteps

# Rows of one member per forward and backward pass on a CPU: more would fall out of the cache and cost page faults.
_MICRO_BATCH_ROWS_CPU = 2048
MAX_TIE_LOSS = 1.01 * float(np.log(2))


def fit(
    ensemble: RewardEnsemble,
    optimizer: torch.optim.Optimizer,
    pairs: LabelledPairs,
    config: RewardConfig,
    rng: np.random.Generator,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    unlabelled: UnlabelledPairs | None = None,
    evaluations: EvaluatedSegments | None = None,
) -> dict[str, float]:
    """Fits every member to the preferences by minibatch cross-entropy under the Bradley-Terry model.

    loss = - sum over members of mean over queries of [y log p + (1 - y) log(1 - p)], p = sigmoid(return of left -
    return of right), y the label (Christiano et al. 2017, B-Pref); with a `mistake_rate`, `preference_losses`. The mean
    is weighted: sum of w_i * ce_i over the minibatch / sum of w_i over the minibatch; pairs of weight 0 are left out.
    Every member sees its own shuffle. Stops after the first pass whose mean accuracy over members is above
    `target_accuracy`, at the latest after `num_epochs` passes. Equal labels count in the loss and not in the accuracy;
    with nothing but ties it stops at 1.01 times the least loss there is, log 2.

    Options of `config`, all off by default: before each pass the filter chooses labels (`trust_labels`) and pairs that
    the ensemble is sure about join (`pseudo_labels`); a pass sees random windows (`random_windows`); some pairs are
    kept out (`held_out`) and say which pass was best (`BestPass`); `predict` is normalised at the end.

    With `evaluations` the mean losses of `themis_ray.reward.likelihoods`, each times its weight in `config`, are added
    in every step, "loss" is the sum and "accuracy" the least accuracy of all kinds; without pairs they are fitted
    alone. The options above are about pairs only.

    Args:
        ensemble: Changed in place.
        optimizer: From `make_optimizer`; changed in place.
        pairs: The labelled queries, N of them.
        config: Batch size, number of passes, target accuracy, memory limit and options.
        rng: Draws the shuffles and windows.
        on_epoch: Called with the metrics so far after every pass.
        unlabelled: Where pseudo-labels may come from; not looked at without `pseudo_label_threshold`.
        evaluations: Ratings, judged steps and demonstrations.

    Returns:
        "loss" (per member and query, last pass), "accuracy" (last pass, taken before each step; nan with nothing but
        ties) and "num_epochs" (passes made), about the labels that were learnt, pseudo-labels left out. Without pairs:
        nan, nan and 0. With `heldout_share` also "heldout_loss" and "heldout_pair_accuracy", after the last pass or
        after the best one where the fit went back to it. With the filter also "trusted_share" and "flipped_share" of
        the last pass, with pseudo-labels "num_pseudo_labels". With evaluations "rating_loss", "rating_accuracy" and so
        on of each kind.
    """
    metrics = {"loss": float("nan"), "accuracy": float("nan"), "num_epochs": 0.0}
    pairs = without_weightless(pairs)
    others = None
    if evaluations is not None and len(evaluations):
        length = evaluations.observations.shape[1]
        losses = EvaluationLosses(ensemble, evaluations, config, _micro_batch_size(ensemble, length, config))
        others = losses if len(losses) else None  # all weights may be 0
    if len(pairs) == 0 and others is not None:
        metrics = _fit_evaluations(ensemble, optimizer, others, config, rng, on_epoch)
        if config.normalize_predictions:
            _normalize(ensemble, evaluations)
    if len(pairs) == 0:
        return metrics
    micro_size = _micro_batch_size(ensemble, pairs.observations.shape[1], config)
    data = training_data(ensemble, pairs, config, unlabelled, micro_size)
    best = None if config.early_stop_patience is None else BestPass(config.early_stop_patience)
    for epoch in range(config.num_epochs or ensemble.num_epochs):
        examples, num_labelled, info = choose_examples(ensemble, data, config)
        logits, order = _run_pass(ensemble, optimizer, data, examples, config, rng, others)
        metrics = _epoch_metrics(logits, order, examples, num_labelled, config.mistake_rate)
        metrics |= {"num_epochs": float(epoch + 1), **info}
        if others is not None:
            metrics.update(others.total(metrics))
        if best is not None:
            metrics.update(best.look(ensemble, optimizer, data))
        if on_epoch is not None:
            on_epoch(metrics)
        is_all_ties = np.isnan(metrics["accuracy"])
        is_done = metrics["accuracy"] > config.target_accuracy or (is_all_ties and metrics["loss"] < MAX_TIE_LOSS)
        if is_done or (best is not None and best.is_over):
            break
    if best is not None:
        metrics.update(best.restore(ensemble, optimizer))
    elif config.heldout_share:
        metrics.update(heldout_metrics(ensemble, data))
    if config.normalize_predictions:
        _normalize(ensemble, pairs, evaluations)
    return metrics


def _normalize(ensemble: RewardEnsemble, *sources: LabelledPairs | EvaluatedSegments | None) -> None:
    """Makes predictions have mean 0 and std 1 over the steps of all sources that hold an answer."""
    used = [source for source in sources if source is not None and len(source)]
    ensemble.normalize_on(
        np.concatenate([source.observations for source in used]), np.concatenate([source.actions for source in used])
    )


def _fit_evaluations(
    ensemble: RewardEnsemble,
    optimizer: torch.optim.Optimizer,
    others: EvaluationLosses,
    config: RewardConfig,
    rng: np.random.Generator,
    on_epoch: Callable[[dict[str, float]], None] | None,
) -> dict[str, float]:
    """Fits as `fit` does, to nothing but ratings, judged steps and demonstrations."""
    metrics = {"loss": float("nan"), "accuracy": float("nan"), "num_epochs": 0.0}
    num_steps = len(slices(len(others), config.batch_size))
    for epoch in range((config.num_epochs or ensemble.num_epochs) if num_steps else 0):
        others.start_pass(num_steps, rng)
        for step in range(num_steps):
            optimizer.zero_grad()
            others.backward(step)
            optimizer.step()
        nothing = {"loss": float("nan"), "accuracy": float("nan")}
        metrics = {**others.total(nothing), "num_epochs": float(epoch + 1)}
        if on_epoch is not None:
            on_epoch(metrics)
        if metrics["accuracy"] > config.target_accuracy:
            break
    return metrics


def _run_pass(
    ensemble: RewardEnsemble,
    optimizer: torch.optim.Optimizer,
    data: TrainingData,
    examples: Examples,
    config: RewardConfig,
    rng: np.random.Generator,
    others: EvaluationLosses | None,
) -> tuple[Tensor, NDArray[np.int64]]:
    """Makes one pass over the examples; returns the logits (K, N) and which example each belongs to (K, N).

    With `others` that are more than the examples, the pass has as many steps as they need, with fewer examples each.
    """
    num_examples, batch_size = len(examples), config.batch_size
    order = rng.permuted(np.tile(np.arange(num_examples), (config.ensemble_size, 1)), axis=1)
    if others is not None:
        num_steps = len(slices(max(num_examples, len(others)), batch_size))
        order = spread(order, num_steps)
        batch_size = order.shape[2]
        order = order.reshape(len(order), -1)
        others.start_pass(num_steps, rng)
    labels = examples.labels[order]
    weights = examples.weights[order] if np.ptp(examples.weights) else None
    windows = None
    if config.temporal_crop:
        windows = random_windows(order.shape, data.steps.segment_length, config.temporal_crop, rng)
    logits = [
        _gradient_step(
            ensemble,
            optimizer,
            data.steps,
            examples.sides[:, order[:, rows]],
            labels[:, rows],
            None if weights is None else weights[:, rows],
            None if windows is None else windows.take(rows),
            data.micro_size,
            config.mistake_rate,
            None if others is None else partial(others.backward, step),
        )
        for step, rows in enumerate(slices(order.shape[1], batch_size))
    ]
    return torch.cat(logits, dim=1)[:, :num_examples], order[:, :num_examples]


def _gradient_step(
    ensemble: RewardEnsemble,
    optimizer: torch.optim.Optimizer,
    steps: SegmentSteps,
    sides: NDArray[np.int64],
    labels: NDArray[np.float32],
    weights: NDArray[np.float32] | None,
    windows: Windows | None,
    micro_size: int,
    mistake_rate: float,
    add_gradients: Callable[[], None] | None = None,
) -> Tensor:
    """Makes one optimiser step on the queries `sides` (2, K, B) with labels (K, B); returns their logits (K, B).

    `add_gradients` adds those of other losses.
    """
    rows, targets = torch.from_numpy(sides), torch.from_numpy(labels).to(ensemble.device)
    batch_size = targets.shape[1]
    scales = None if weights is None else _weight_scales(weights).to(ensemble.device)
    optimizer.zero_grad()
    logits = []
    for part in slices(batch_size, micro_size):
        margin = _pair_margins(ensemble, steps, rows[:, :, part], None if windows is None else windows.take(part))
        losses = preference_losses(margin, targets[:, part], mistake_rate)
        loss = (losses if scales is None else losses * scales[:, part]).sum() / batch_size
        loss.backward()  # type: ignore[no-untyped-call]
        logits.append(margin.detach())
    if add_gradients is not None:
        add_gradients()
    optimizer.step()
    return torch.cat(logits, dim=1)


def _weight_scales(weights: NDArray[np.float32]) -> Tensor:
    """Returns weights (K, B) over each member's mean weight, so that a plain mean becomes the weighted one."""
    return torch.from_numpy(weights / weights.mean(axis=1, keepdims=True))


def _pair_margins(ensemble: RewardEnsemble, steps: SegmentSteps, sides: Tensor, windows: Windows | None) -> Tensor:
    """Returns the predicted return of left minus that of right, (K, B), for segment rows `sides` (2, K, B).

    Both sides of all members go through the networks in one forward pass. Steps outside of a window go through them
    too and do not count.
    """
    _, ensemble_size, batch_size = sides.shape
    both = sides.transpose(0, 1).reshape(ensemble_size, 2 * batch_size)
    rewards = steps.rewards(ensemble, both).view(ensemble_size, 2, batch_size, -1)
    if windows is not None:
        mask = torch.from_numpy(window_mask(windows, rewards.shape[3])).transpose(0, 1)
        rewards = rewards * mask.to(rewards.device)
    left, right = rewards.sum(dim=3).unbind(dim=1)
    return left - right


def _micro_batch_size(ensemble: RewardEnsemble, length: int, config: RewardConfig) -> int:
    """Returns how many queries go through the networks at once; gradients of several such parts are added up."""
    num_rows = config.max_batch_bytes // (2 * ensemble.bytes_per_row)  # activations and their gradients
    if ensemble.device.type == "cpu":
        num_rows = min(num_rows, _MICRO_BATCH_ROWS_CPU)
    return max(1, num_rows // (2 * length))


def _epoch_metrics(
    logits: Tensor, order: NDArray[np.int64], examples: Examples, num_labelled: int, mistake_rate: float
) -> dict[str, float]:
    """Returns loss and accuracy over the first `num_labelled` examples; the pseudo-labels behind them agree anyway."""
    ensemble_size = len(order)
    margins, labels, weights = logits.cpu().numpy(), examples.labels[order], examples.weights[order]
    if num_labelled < len(examples):
        is_labelled = order < num_labelled
        margins, labels, weights = (
            values[is_labelled].reshape(ensemble_size, num_labelled) for values in (margins, labels, weights)
        )
    losses = preference_losses(torch.from_numpy(margins), torch.from_numpy(labels), mistake_rate)
    loss = (losses * _weight_scales(weights)).mean()
    return {"loss": float(loss), "accuracy": accuracy(left_probabilities(margins, np.zeros_like(margins)), labels)}
