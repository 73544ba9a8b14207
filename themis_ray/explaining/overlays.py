"""The explained clips that a study shows beside its plain ones, drawn once and found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from themis_ray.clips import Replayer, replay_order, spread_segments
from themis_ray.data import Segment
from themis_ray.errors import DataError
from themis_ray.explain import ExplainedSegment, Scales, check_method, find_scales
from themis_ray.explaining.folder import legend
from themis_ray.explaining.run import ExplainedRun, Explanation
from themis_ray.explaining.studio import Output, Studio
from themis_ray.feedback.segment_clips import ClipIndex
from themis_ray.files import write_whole

__all__ = ["OverlayClips"]

NUM_SCALED = 100  # segments that the scale is found on; more need memory and change little
NUM_AT_ONCE = 32


class OverlayClips:
    """Draws segments that are put to people with one explanation, all on one scale.

    Clips lie beside the plain ones. `overlay-NAME.jsonl` says which of them shows which segment, and
    `overlay-NAME-BATCH.json` holds the scale of those that are sent together, so that a command that was killed goes
    on where it was.

    Args:
        run: Whose networks are explained.
        name: Of the overlay, see `Explanation.parse`.
        segments: All that are sent together and share a scale: equal colours, bars and curves mean the same.
        output: Where clips go; frames per second are those of the plain clips.

    Raises:
        UnknownNameError, ConfigError: There is no such explanation, it does not fit, or the run has no such network.
        DataError: What was drawn before cannot be read.
    """

    def __init__(self, run: ExplainedRun, name: str, segments: Sequence[Segment], output: Output) -> None:
        self._run, self._name, self._output = run, name, output
        self._explanation = Explanation.parse(name)
        self._subject = run.subject(self._explanation)
        check_method(self._explanation.method, self._subject)
        self._segments = {segment.id: segment for segment in segments}
        self._explained: dict[str, ExplainedSegment] = {}
        batch = hashlib.blake2b("\n".join([run.run.checkpoint, *sorted(self._segments)]).encode(), digest_size=8)
        about = {"codec": output.codec, "clip_fps": output.clip_fps, "batch": batch.hexdigest()}
        self._index = ClipIndex(output.folder / f"overlay-{name}.jsonl", about)
        self._scales_path = output.folder / f"overlay-{name}-{batch.hexdigest()}.json"
        self._scales: Scales | None = None

    def paths(self, segments: Sequence[Segment]) -> dict[str, Path]:
        """Returns the explained clip of each segment by its id, drawing those that are not there.

        Args:
            segments: Some of those that are sent together.

        Raises:
            DataError: A segment cannot be replayed, or a file cannot be written.
        """
        missing = [segment for segment in segments if self._index.find(segment.id) is None]
        missing = sorted({segment.id: segment for segment in missing}.values(), key=replay_order)
        if missing:
            self._draw(missing)
        return {segment.id: self._index[segment.id] for segment in segments}

    def _draw(self, segments: Sequence[Segment]) -> None:
        scales = self._find_scales()
        texts = legend(self._explanation)
        with Replayer(self._run.run.settings.env) as replayer:
            studio = Studio(self._run.look, replayer, self._output)
            for start in range(0, len(segments), NUM_AT_ONCE):
                for explained in self._explain(segments[start : start + NUM_AT_ONCE]):
                    clip = studio.clip(studio.draw(explained, scales, self._subject.meaning, texts))
                    self._index.add(explained.segment.id, clip.name)

    def _explain(self, segments: Sequence[Segment]) -> list[ExplainedSegment]:
        """Returns what the steps of segments are due; those that the scale was found on are known."""
        new = [segment for segment in segments if segment.id not in self._explained]
        found = {one.segment.id: one for one in (self._run.explain(self._explanation, new) if new else [])}
        return [found.get(segment.id) or self._explained.pop(segment.id) for segment in segments]

    def _find_scales(self) -> Scales:
        if self._scales is None:
            self._scales = self._load_scales()
        if self._scales is None:
            scaled = spread_segments(tuple(self._segments.values()), NUM_SCALED)
            for start in range(0, len(scaled), NUM_AT_ONCE):
                explained = self._run.explain(self._explanation, scaled[start : start + NUM_AT_ONCE])
                self._explained |= {one.segment.id: one for one in explained}
            self._scales = find_scales(list(self._explained.values()))
            self._save_scales(self._scales)
        return self._scales

    def _load_scales(self) -> Scales | None:
        """Returns the scale of these segments; None where there is none that can be read."""
        try:
            values = json.loads(self._scales_path.read_text())
            low, high = values["limits"]
            inputs = [int(number) for number in values["inputs"]]
            return Scales(float(values["colour"]), float(values["bar"]), (float(low), float(high)), inputs)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _save_scales(self, scales: Scales) -> None:
        try:
            write_whole(self._scales_path, json.dumps(asdict(scales)) + "\n")
        except OSError as error:
            raise DataError(f"{self._scales_path} cannot be written ({error.strerror}).") from error
