"""What `themis explain` writes: clips, stills, numbers and one page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from themis_ray.clips import Replayer
from themis_ray.data import Preference, Segment
from themis_ray.errors import ConfigError
from themis_ray.explain import (
    METHODS,
    ExplainedPair,
    ExplainedSegment,
    InfluenceRow,
    PageSection,
    Prediction,
    check_method,
    find_scales,
    strongest,
    write_explanation_page,
)
from themis_ray.explaining.run import INFLUENCE, SUBJECTS, ExplainedRun, Explanation
from themis_ray.explaining.studio import Drawn, Output, Studio
from themis_ray.reward import left_probabilities

__all__ = ["LEGENDS", "explain_run", "legend"]

NUM_STRONGEST = 5
LEGENDS = {
    "action": ("speaks against this action", "speaks for it"),
    "value": ("lowers the value", "raises it"),
    "reward": ("lowers the reward", "raises it"),
    "preference": ("speaks against this side", "speaks for it"),
}
SIGNIFICANT_DIGITS = 5
# Of the time; the rest is drawing.
ATTRIBUTION_SHARE = 0.6

Report = Callable[[float], None]


def legend(explanation: Explanation) -> tuple[str, str]:
    """Returns what blue and orange mean."""
    is_signed = explanation.method not in METHODS or METHODS[explanation.method].is_signed
    return LEGENDS[explanation.of] if is_signed else ("", "matters more")


def explain_run(
    run: ExplainedRun,
    explanation: Explanation,
    output: Output,
    num_segments: int = 6,
    has_influence: bool = False,
    report: Report = lambda _: None,
) -> Path:
    """Writes clips, stills, `explanations.json`, `attributions.npz` and `index.html`, and returns the page's path.

    `explanations.json` holds, for each segment, the explained number of each step and what each input is due;
    `attributions.npz` what each place of a picture is due, (N, h, w) under the segment's id.

    Args:
        run: Where segments, preferences and networks come from.
        explanation: What is explained, and how.
        output: Where to.
        num_segments: Segments, or pairs where preferences are explained, spread evenly over what is stored.
        has_influence: Whether the page shows which answers, or which states, moved each prediction.
        report: Called with the share of the work that is done.

    Raises:
        UnknownNameError, ConfigError: The method does not fit, or the run has no such network.
        DataError: The run holds nothing that can be drawn.
    """
    if num_segments < 1:
        raise ConfigError(f"{num_segments} segments show nothing. Give 1 or more.")
    subject = run.subject(explanation)
    preferences: list[Preference] = []
    if explanation.of == "preference":
        preferences = run.preferences(num_segments)
        ids = [id_ for preference in preferences for id_ in (preference.left_id, preference.right_id)]
        segments = [run.run.dataset.segment(id_) for id_ in ids]
    else:
        segments = run.segments(num_segments)
    is_attributed = explanation.method != INFLUENCE
    explained: list[ExplainedSegment] = []
    if is_attributed:
        check_method(explanation.method, subject)
        explained = run.explain(explanation, segments, lambda share: report(ATTRIBUTION_SHARE * share))
    output.folder.mkdir(parents=True, exist_ok=True)
    with Replayer(run.run.settings.env) as replayer:
        studio = Studio(run.look, replayer, output)
        sections = []
        if is_attributed:
            drawn = _draw(explained, studio, subject.meaning, explanation, report)
            sections.append(_attribution_section(drawn, preferences, studio, run, explanation))
        if has_influence or not is_attributed:
            sections += _influence_sections(run, explanation, segments, preferences, studio, report)
    _write_numbers(explained, explanation, output.folder)
    title = f"{run.run.settings.env.id}: {SUBJECTS[explanation.of].rstrip('.').lower()}"
    return write_explanation_page(
        output.folder / "index.html", title, _intro(explanation, subject.meaning), sections, facts=_facts(run)
    )


# ---------------------------------------------------------------- attributions


def _draw(
    explained: Sequence[ExplainedSegment], studio: Studio, meaning: str, explanation: Explanation, report: Report
) -> Iterator[Drawn]:
    scales = find_scales(explained)
    for number, one in enumerate(explained):
        yield studio.draw(one, scales, meaning, legend(explanation))
        report(ATTRIBUTION_SHARE + (1 - ATTRIBUTION_SHARE) * (number + 1) / len(explained))


def _attribution_section(
    drawn: Iterator[Drawn],
    preferences: Sequence[Preference],
    studio: Studio,
    run: ExplainedRun,
    explanation: Explanation,
) -> PageSection:
    method = METHODS[explanation.method].summary
    text = f"{method} All clips have the same scale of colours, bars and curves."
    if not preferences:
        return PageSection("What each step is due", text, clips=[studio.page_clip(one) for one in drawn])
    pairs = [
        ExplainedPair(
            f"Query {preference.query_id[:8]}",
            studio.page_clip(left),
            studio.page_clip(right),
            facts=(
                ("answered", preference.choice.value),
                ("by", preference.teacher),
                ("predicted: left is better", f"{_left_probability(run, preference):.0%}"),
                ("both sides in one video", studio.pair_clip(left, right).name),
            ),
        )
        for preference, (left, right) in zip(preferences, zip(drawn, drawn, strict=True), strict=True)
    ]
    return PageSection("What makes a side win", text, pairs=pairs)


def _left_probability(run: ExplainedRun, preference: Preference) -> float:
    assert run.run.ensemble is not None
    sides = [run.run.dataset.segment(id_) for id_ in (preference.left_id, preference.right_id)]
    returns = [run.run.ensemble.segment_returns(side.observations[None], side.actions[None]) for side in sides]
    return float(left_probabilities(*returns).mean())


# ---------------------------------------------------------------- influence


def _influence_sections(
    run: ExplainedRun,
    explanation: Explanation,
    segments: Sequence[Segment],
    preferences: Sequence[Preference],
    studio: Studio,
    report: Report,
) -> list[PageSection]:
    if explanation.of in ("action", "value"):
        return _state_sections(run, explanation, segments, studio, report)
    dataset = run.run.dataset
    if preferences:
        sides = [(dataset.segment(one.left_id), dataset.segment(one.right_id)) for one in preferences]
        predictions = [
            Prediction(
                np.stack([side.observations for side in pair]), np.stack([side.actions for side in pair]), (1.0, -1.0)
            )
            for pair in sides
        ]
        names = [f"query {one.query_id[:8]}" for one in preferences]
        shown = [list(pair) for pair in sides]
        texts = ("spoke for right", "spoke for left")
    else:
        predictions = [Prediction(one.observations[None], one.actions[None], (1.0,)) for one in segments]
        names = [f"segment {one.id[:8]}" for one in segments]
        shown = [[one] for one in segments]
        texts = ("lowered its reward", "raised its reward")
    answered, influence = run.moved_by_preferences(predictions)
    sections = []
    for number, (name, clips, row) in enumerate(zip(names, shown, influence, strict=True)):
        rows = [
            InfluenceRow(
                f"Answer {index + 1} of {len(answered)}",
                float(row[index]),
                studio.small_clip(dataset.segment(answered[index].left_id)),
                studio.small_clip(dataset.segment(answered[index].right_id)),
                answered[index].choice,
                facts=(("by", answered[index].teacher), ("asked after", f"{answered[index].num_env_steps} env steps")),
            )
            for index in strongest(row, NUM_STRONGEST)
        ]
        sections.append(
            PageSection(
                f"These answers made the model think so: {name}",
                "The stored answers whose fits moved this prediction most (TracInCP on the last layer).",
                clips=[studio.shown_clip(clip) for clip in clips],
                influences=rows,
                influence_texts=texts,
            )
        )
        report(ATTRIBUTION_SHARE + (1 - ATTRIBUTION_SHARE) * (number + 1) / len(names))
    return sections


def _state_sections(
    run: ExplainedRun, explanation: Explanation, segments: Sequence[Segment], studio: Studio, report: Report
) -> list[PageSection]:
    middle = len(segments[0]) // 2
    queries = (
        np.stack([segment.observations[middle] for segment in segments]),
        np.stack([segment.actions[middle] for segment in segments]),
    )
    stored, pulls = run.moved_by_states(explanation, queries)
    sections = []
    for number, (segment, row) in enumerate(zip(segments, pulls, strict=True)):
        rows = [
            InfluenceRow(
                f"Step {stored[index].start_step + len(stored[index]) // 2} of episode {stored[index].episode_id[:6]}",
                float(row[index]),
                studio.small_clip(stored[index]),
            )
            for index in strongest(row, NUM_STRONGEST)
        ]
        sections.append(
            PageSection(
                f"These states pull with step {segment.start_step + middle}: segment {segment.id[:8]}",
                "Stored states in which learning to do what was done there moves this prediction most (TracInCPFast).",
                clips=[studio.shown_clip(segment)],
                influences=rows,
                influence_texts=("pulls against it", "pulls with it"),
            )
        )
        report(ATTRIBUTION_SHARE + (1 - ATTRIBUTION_SHARE) * (number + 1) / len(segments))
    return sections


# ---------------------------------------------------------------- words and numbers


def _intro(explanation: Explanation, meaning: str) -> str:
    if explanation.method == INFLUENCE:
        return f"Explained: the {meaning}, by what the networks learned from (TracInCPFast, Pruthi et al. 2020)."
    negative, positive = legend(explanation)
    colours = f"Blue {negative}, orange {positive}" if negative else f"Orange {positive}"
    return f"Explained: the {meaning}, by {explanation.method.replace('_', ' ')}. {colours}."


def _facts(run: ExplainedRun) -> list[tuple[str, str]]:
    finished = run.run
    return [
        ("run", finished.path.resolve().name),
        ("checkpoint", finished.checkpoint),
        ("answers", str(len(finished.dataset.labelled_preferences()))),
        ("fits of the reward ensemble", str(finished.reward_version)),
    ]


def _write_numbers(explained: Sequence[ExplainedSegment], explanation: Explanation, folder: Path) -> None:
    if not explained:
        return
    rows = [
        {
            "segment_id": one.segment.id,
            "episode_id": one.segment.episode_id,
            "start_step": one.segment.start_step,
            "numbers": _rounded(one.numbers),
            "input_names": one.input_names,
            "attributions": _rounded(one.inputs),
        }
        for one in explained
    ]
    about: dict[str, Any] = {
        "of": explanation.of,
        "method": explanation.method,
        "baseline": explanation.baseline,
        "dimension": explanation.dimension,
        "segments": rows,
    }
    (folder / "explanations.json").write_text(json.dumps(about, separators=(",", ":")) + "\n")
    places = {one.segment.id: one.places for one in explained if one.places is not None}
    if places:
        np.savez_compressed(folder / "attributions.npz", **places)  # type: ignore[arg-type]


def _rounded(array: NDArray[Any]) -> Any:
    """Returns nested lists of numbers with five significant digits."""
    numbers = np.array([float(f"{number:.{SIGNIFICANT_DIGITS}g}") for number in array.ravel()])
    return numbers.reshape(array.shape).tolist()
