"""Optuna's tree-structured Parzen estimator as a searcher of Tune, which goes on where a killed sweep was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from themis_ray.errors import ConfigError, ThemisError
from themis_ray.sweeping.trials import MAX_REFUSED

__all__ = ["OptunaSearcher", "Suggestion", "read_suggestions"]


@dataclass(frozen=True)
class Suggestion:
    """Values that were tried in an earlier start of the sweep, and what they reached; None: they are not through."""

    name: str
    values: Mapping[str, Any]
    score: float | None


def read_suggestions(path: Path, score_of: Callable[[str], float | None]) -> list[Suggestion]:
    """Return what was suggested so far; an unfinished last line is none."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [Suggestion(row["name"], row["values"], score_of(row["name"])) for row in rows]


class OptunaSearcher(Searcher):
    """Asks Optuna for each trial's values and tells it what they reached.

    Args:
        space: Dotted key -> list or distribution, as in `SweepSettings.space`.
        num_samples: Trials in all, those of earlier starts included.
        seed: Of the sampler.
        metric: A column of metrics.jsonl, of which the last line counts.
        mode: max or min.
        earlier: From `read_suggestions`.
        make: From a suggestion's name, None for a new one, and its values to what Tune hands to the trial; raises
            ThemisError where they make no experiment.

    Raises:
        ConfigError: Optuna is not installed.
    """

    def __init__(
        self,
        space: Mapping[str, Any],
        num_samples: int,
        seed: int,
        metric: str,
        mode: str,
        earlier: Sequence[Suggestion],
        make: Callable[[str | None, Mapping[str, Any]], dict[str, Any]],
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        try:
            import optuna
        except ImportError:
            raise ConfigError("search=optuna needs Optuna, which is not installed. Run: pip install optuna.") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._space = {key: _distribution(optuna, choices) for key, choices in space.items()}
        self._study = optuna.create_study(
            direction="maximize" if mode == "max" else "minimize",
            # A sampler that began anew with the same seed would say again what it said first.
            sampler=optuna.samplers.TPESampler(seed=seed + len(earlier)),
        )
        self._make = make
        self._asked: dict[str, Any] = {}
        self._num_left = num_samples - len(earlier)
        self._unfinished = [suggestion for suggestion in earlier if suggestion.score is None]
        for suggestion in earlier:
            if suggestion.score is not None:
                self._study.add_trial(
                    optuna.trial.create_trial(
                        params=dict(suggestion.values), distributions=self._space, value=suggestion.score
                    )
                )

    def suggest(self, trial_id: str) -> Any:
        """Return what the next trial gets: first those that were not through, then new ones.

        Values that make no experiment, such as segments longer than an episode, are told to Optuna as failed.

        Raises:
            ThemisError: Many suggestions in a row made none.
        """
        if self._unfinished:
            suggestion = self._unfinished.pop(0)
            self._study.enqueue_trial(dict(suggestion.values))
            self._asked[trial_id] = self._study.ask(self._space)
            return self._make(suggestion.name, suggestion.values)
        if self._num_left <= 0:
            return Searcher.FINISHED
        self._num_left -= 1
        for num_refused in range(1, MAX_REFUSED + 1):
            trial = self._study.ask(self._space)
            try:
                packed = self._make(None, dict(trial.params))
            except ThemisError:
                self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
                if num_refused == MAX_REFUSED:
                    raise
            else:
                self._asked[trial_id] = trial
                return packed
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna what the trial reached, or that it failed."""
        trial = self._asked.pop(trial_id, None)
        if trial is None:
            return
        told = None if result is None else result.get(self.metric)
        value = math.nan if told is None else float(told)
        if error or not math.isfinite(value):
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, value)

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: an earlier start is told from the run folders."""
        Path(checkpoint_path).write_bytes(b"")

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave the study out of Tune's own record of the sweep, which is never read."""
        return {}


def _distribution(optuna: Any, choices: Any) -> Any:
    """Return Optuna's word for a list or distribution of `space`."""
    if isinstance(choices, list):
        return optuna.distributions.CategoricalDistribution(choices)
    ((kind, values),) = choices.items()
    if kind == "choice":
        return optuna.distributions.CategoricalDistribution(values)
    low, high = values
    if kind == "randint":
        return optuna.distributions.IntDistribution(low, high - 1)
    return optuna.distributions.FloatDistribution(low, high, log=kind == "loguniform")
