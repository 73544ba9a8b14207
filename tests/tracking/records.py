"""Reads what trackers wrote, from their own files: W&B's record of a run, and TensorBoard's event files."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event
from wandb.proto.wandb_internal_pb2 import Record

BLOCK_BYTES, FILE_HEADER_BYTES, HEADER_BYTES = 32768, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class WandbRecord:
    """A run as `wandb sync` would find it."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Path]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    exit_code: int | None = None


def read_wandb(path: Path, timeout_s: float = 20.0) -> WandbRecord:
    """Returns what is in `run-ID.wandb` of a run that is over; W&B's service writes the last of it a moment later."""
    deadline = time.monotonic() + timeout_s
    while (read := _read_wandb(path)).exit_code is None:
        assert time.monotonic() < deadline, f"{path} has no end"
        time.sleep(0.02)
    return read


def _read_wandb(path: Path) -> WandbRecord:
    read = WandbRecord()
    for record in _wandb_records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            read.run = record.run
            read.config = {
                row.key: json.loads(row.value_json) for row in record.run.config.update if row.key != "_wandb"
            }
        elif kind == "history":
            read.history.append(_nested(record.history.item))
        elif kind == "summary":
            read.summary |= _nested(record.summary.update)
        elif kind == "metric":
            read.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "artifact":
            entries = {entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents}
            read.artifacts[record.artifact.type] = entries
        elif kind == "files":
            read.files |= {row.path for row in record.files.files}
        elif kind == "exit":
            read.exit_code = record.exit.exit_code
    return read


def _nested(items: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in items:
        *parents, last = item.nested_key or [item.key]
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = json.loads(item.value_json)
    return values


def _wandb_records(content: bytes) -> Iterator[Any]:
    """Yields the records of LevelDB's log format: blocks of pieces, each with checksum, length and kind."""
    place, begun = FILE_HEADER_BYTES, b""
    while place + HEADER_BYTES <= len(content):
        left = BLOCK_BYTES - place % BLOCK_BYTES
        if left < HEADER_BYTES:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        piece = content[place + HEADER_BYTES : place + HEADER_BYTES + length]
        place += HEADER_BYTES + length
        begun = piece if kind in (FULL, FIRST) else begun + piece
        if kind in (FULL, LAST):
            yield Record.FromString(begun)


@dataclass
class Events:
    """What TensorBoard would show; of a tag that was written twice the last value."""

    scalars: dict[str, dict[int, float]] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    plugins: dict[str, bytes] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)


def read_events(folder: Path) -> Events:
    """Returns what is in all event files of a folder."""
    read = Events()
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:  # 8 bytes of length, 4 of checksum, the event, 4 of checksum
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log"):
                read.starts.append(event.step)
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    read.scalars.setdefault(value.tag, {})[event.step] = value.simple_value
                elif value.WhichOneof("value") == "image":
                    read.images[value.tag] = value.image.encoded_image_string
                elif value.metadata.plugin_data.plugin_name == "text":
                    read.texts[value.tag.removesuffix("/text_summary")] = value.tensor.string_val[0].decode()
                elif value.metadata.plugin_data.plugin_name == "hparams":
                    read.plugins[value.tag] = value.metadata.plugin_data.content
    return read
