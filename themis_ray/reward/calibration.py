"""Does p(left) mean what it says? Reliability and expected calibration error (Guo et al. 2017)."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class ReliabilityCurve(NamedTuple):
    """Predicted against observed, in B equally wide bins of p(left) from 0 to 1.

    Bin b holds b/B <= p < (b+1)/B, the last one p = 1 too. Without pairs in it both shares are NaN.
    """

    predicted: NDArray[np.float64]
    """(B,) mean p(left) in the bin."""
    observed: NDArray[np.float64]
    """(B,) mean label in the bin: how often left was preferred."""
    counts: NDArray[np.int64]
    """(B,) pairs in the bin."""


def reliability_curve(probabilities: NDArray[Any], labels: NDArray[Any], num_bins: int = 10) -> ReliabilityCurve:
    """Returns how often left was preferred where the ensemble said p(left).

    Equal labels count as 0.5: half an answer for each side, which is what the loss makes of them.

    Args:
        probabilities: (N,) p(left); the mean over members is what the ensemble says.
        labels: (N,) p(left preferred), for measuring without a label margin.
        num_bins: B.

    Raises:
        ValueError: A probability or label is outside [0, 1], the shapes differ, or there is no bin.
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    if probabilities.ndim != 1 or probabilities.shape != labels.shape:
        raise ValueError(
            f"probabilities and labels must have one shape (N,), not {probabilities.shape}, {labels.shape}"
        )
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, not {num_bins}")
    for values in (probabilities, labels):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("probabilities and labels must be from 0 to 1")
    # Not probabilities * num_bins, which for 0.29 of 100 bins is less than 29.
    bins = np.searchsorted(np.arange(1, num_bins) / num_bins, probabilities, side="right")
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        predicted, observed = (np.bincount(bins, values, num_bins) / counts for values in (probabilities, labels))
    return ReliabilityCurve(predicted, observed, counts)


def expected_calibration_error(probabilities: NDArray[Any], labels: NDArray[Any], num_bins: int = 10) -> float:
    """Returns ECE = sum over bins of (pairs in the bin / N) * |observed - predicted|; NaN without pairs.

    Arguments and errors as for `reliability_curve`.
    """
    curve = reliability_curve(probabilities, labels, num_bins)
    if not curve.counts.sum():
        return float("nan")
    gaps = np.abs(curve.observed - curve.predicted)
    return float(np.nansum(gaps * curve.counts) / curve.counts.sum())
