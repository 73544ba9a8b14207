"""The labelling service on this machine for a browser: real store, real clips, one study for each thing to look at.

`python tests/browser/labelling_site.py PORT` keeps it open to look at by hand, and prints the way into each study.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import uvicorn
import yaml

from themis_ray.clips import write_clip
from themis_ray.envs.display import prepare_drawing
from themis_ray.explain import draw_bars, draw_curve, draw_legend, shared_limits, shared_scale, shrink
from themis_ray.labeling.app import create_app
from themis_ray.labeling.clip_server import ClipApp
from themis_ray.labeling.service import Service, ServiceSettings
from themis_ray.labeling.store import LabelStore
from themis_ray.labeling.study import load_study
from themis_ray.wire import NewQuery, NewSide

CLIP_FPS = 15.0
NUM_FRAMES = 40
NUM_CLIPS = 7
STATE_NAMES = ("cart position", "cart velocity", "pole angle", "pole velocity")
STATE_COSTS = np.array([0.5, 0.1, 2.0, 0.2])
OVERLAY = "reward-input_x_gradient"
ACTOR = "test"
SECRET = b"a secret of the tests, and no other"
REDIRECT_PATH = "/healthz?cc={code}"

CONSENT = """## Who we are

We are a research group that trains programs from what people think of them.

## What happens

You compare short clips of a simulated cart that balances a pole. It takes about **five minutes**. We store your choices
and how long they took, under a random id.

## Your rights

* You can stop at any time, without a reason, and have your answers deleted.
* We ask for nothing that says who you are.
* Answers may be published, without the id.
"""
INSTRUCTIONS = """Two short clips of a **cart with a pole** play side by side.

* Choose the one in which the pole is held *upright* better.
* How far the cart moves does not matter.
"""
BEFORE = [
    {
        "kind": "choice",
        "id": "games",
        "text": "How often do you play video games?",
        "options": ["Never", "A few times a year", "Every week", "Every day"],
    },
    {
        "kind": "scale",
        "id": "robots",
        "text": "How familiar are you with simulated robots?",
        "low_label": "Not at all",
        "high_label": "It is my job",
    },
    {"kind": "text", "id": "words", "text": "Anything that we should know before you start?"},
]
AFTER = [
    {
        "kind": "scale",
        "id": "hard",
        "text": "How hard was it to choose?",
        "high": 5,
        "low_label": "Very easy",
        "high_label": "Very hard",
    },
    {"kind": "text", "id": "how", "text": "What did you pay attention to?", "is_required": True},
]


@dataclass(frozen=True)
class Site:
    """A service that runs.

    Attributes:
        url: Where, without a slash at the end.
        service: Its parts; its store tells what arrived.
    """

    url: str
    service: Service

    @property
    def store(self) -> LabelStore:
        return self.service.store

    def entrance(self, study: str, **parameters: str) -> str:
        """Returns the link of a study."""
        extra = "".join(f"&{name}={value}" for name, value in parameters.items())
        return self.url + self.service.entrance(self.store.studies.get(study)) + extra

    def answers(self, study: str) -> list[Any]:
        """Returns the answers that count, practice left out, in the order of arrival."""
        found = self.store.work.answers(study).answers
        return [answer for answer in found if answer.kind != "practice" and not answer.is_undone]


def balance(number: int) -> tuple[Any, Any]:
    """Returns frames of a cart that balances a pole, better with every number, and the states that they show."""
    prepare_drawing("pygame")
    rng = np.random.default_rng(number)
    env = gym.make("CartPole-v1", render_mode="rgb_array", disable_env_checker=True)
    env.reset(seed=number)
    state: Any = env.unwrapped
    frames, states = [], []
    for _ in range(NUM_FRAMES):
        frames.append(np.asarray(env.render()))
        states.append(np.array(state.state))
        _, speed, angle, turn = state.state
        wanted = int(3 * angle + turn + 0.3 * speed > 0)
        action = wanted if rng.random() < 0.4 + 0.1 * number else int(rng.integers(2))
        _, _, is_over, _, _ = env.step(action)
        if is_over:
            env.reset(seed=number + 100)
    env.close()
    return np.stack(frames), np.stack(states)


def balance_clips(folder: Path) -> list[str]:
    """Draws carts that balance a pole, better from clip to clip, and returns the names of the clips."""
    return [write_clip(balance(number)[0], folder, clip_fps=CLIP_FPS).name for number in range(NUM_CLIPS)]


def explained_clips(folder: Path) -> list[str]:
    """Draws the same clips with an explanation, and returns their names.

    What is explained is a reward of which everything is known: 1 less magnitudes of the state, each its own share.
    """
    drawn = [balance(number) for number in range(NUM_CLIPS)]
    losses = [-STATE_COSTS * np.abs(states) for _, states in drawn]
    rewards = [1 + shares.sum(axis=1) for shares in losses]
    scale, limits = shared_scale(*losses), shared_limits(*rewards)
    names = []
    for (frames, states), shares, reward in zip(drawn, losses, rewards, strict=True):
        picture = draw_bars(shrink(frames, 320), shares, STATE_NAMES, scale, states)
        picture = draw_curve(picture, reward, "predicted reward", limits)
        picture = draw_legend(picture, scale, "lowers the reward", "raises it")
        names.append(write_clip(picture, folder, clip_fps=CLIP_FPS).name)
    return names


def numbered_clips(folder: Path) -> list[str]:
    """Draws clips whose frames say by their brightness which they are, and returns their names.

    The second one is shorter. Frame n has a brightness of 10 + 6 n, apart from a corner that tells the clips apart.
    """
    names = []
    for number, num_frames in enumerate((NUM_FRAMES, NUM_FRAMES - 10)):
        grey = (10 + 6 * np.arange(num_frames)).astype(np.uint8)
        frames = np.broadcast_to(grey[:, None, None, None], (num_frames, 96, 128, 3)).copy()
        frames[:, :8, : 8 + 8 * number] = 255
        names.append(write_clip(frames, folder, clip_fps=CLIP_FPS).name)
    return names


def add_study(
    store: LabelStore,
    study: str,
    clips: Sequence[str],
    *,
    num_frames: Sequence[int] = (),
    explained: Sequence[str] = (),
    **settings: Any,
) -> None:
    """Makes a study whose queries are all pairs of the clips, or each clip by itself; every third is not explained."""
    lengths = num_frames or [NUM_FRAMES] * len(clips)
    values = {"title": "Holding a pole upright", "id": study, "queries_per_annotator": 12, **settings}
    config = load_study(yaml.safe_dump(values))
    store.studies.create(config, ACTOR)
    for name in (*clips, *explained):
        store.studies.add_clip(study, name, 1)
    sides = [
        NewSide(segment_id=f"segment-{number}", clip=name, num_frames=length, clip_fps=CLIP_FPS)
        for number, (name, length) in enumerate(zip(clips, lengths, strict=True))
    ]
    pairs: list[tuple[NewSide, NewSide | None]]
    if config.feedback == "pairwise":
        pairs = [(left, right) for n, left in enumerate(sides) for right in sides[n + 1 :]]
    else:
        pairs = [(side, None) for side in sides]
    overlays = {side.segment_id: {OVERLAY: name} for side, name in zip(sides, explained, strict=False)}

    def explain(side: NewSide | None, number: int) -> NewSide | None:
        if side is None or number % 3 == 2:
            return side
        return side.model_copy(update={"overlays": overlays.get(side.segment_id, {})})

    queries = [
        NewQuery(
            id=f"q-{number:02d}",
            feedback=config.feedback,
            kind="practice" if number < config.num_practice else "ordinary",
            gold_choice="right" if number < config.num_practice else None,
            left=explain(left, number),
            right=explain(right, number),
            overlap=1000,
        )
        for number, (left, right) in enumerate(pairs)
    ]
    store.studies.add_queries(study, queries, ACTOR)


def add_studies(
    store: LabelStore, clips: Sequence[str], explained: Sequence[str], numbered: Sequence[str], url: str
) -> None:
    """Makes one study for each thing to look at."""
    panel = {
        "kind": "generic",
        "id_parameters": ["PID"],
        "redirect_url": url + REDIRECT_PATH,
        "code_complete": "C-1842-OAK",
        "code_no_consent": "N-7-ELM",
    }
    question = "In which clip is the pole held up better?"
    texts: dict[str, Any] = {"question": question, "instructions": INSTRUCTIONS}
    consent = {"version": "1.2", "text": CONSENT}
    whole = {"consent": consent, "before": BEFORE, "after": AFTER, "num_practice": 2, "panel": panel, "break_every": 5}
    add_study(store, "whole", clips, **texts, **whole)
    add_study(store, "plain", clips, question=question)
    add_study(store, "numbered", numbered, num_frames=[NUM_FRAMES, NUM_FRAMES - 10], question=question)
    add_study(store, "patient", clips, question=question, min_watched_s=2.0)
    for name in ("keys", "offline", "lost", "closed", "busy", "late", "starting", "undo", "reload", "left"):
        add_study(store, name, clips, question=question)
    for name in ("leave", "untouched"):
        add_study(store, name, clips, question=question)
    arms = [{"name": "why", "overlay": OVERLAY}]
    add_study(store, "explained", clips, explained=explained, arms=arms, question=question)
    add_study(store, "rating", clips, feedback="rating", question="How well is the pole held up?")
    add_study(store, "steps", clips, feedback="steps", question="Where does the cart do well, and where badly?")
    grid = {"env_id": "MiniGrid-Empty-5x5-v0", "question": "Walk to the green field."}
    for name in ("demonstration", "hasty"):
        add_study(store, name, clips, feedback="demonstration", **grid)
    add_study(store, "refused", clips, queries_per_annotator=1, question=question)
    add_study(store, "code-only", clips, queries_per_annotator=1, panel={**panel, "redirect_url": ""})
    for name in ("empty", "nothing-yet"):
        add_study(store, name, [], question=question)


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def serve(folder: Path, port: int = 0) -> Iterator[Site]:
    """Runs the service with all studies; its clips come from another port, as they do for people."""
    port, clips_port = port or free_port(), free_port()
    url, clips_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{clips_port}"
    clips = folder / "clips"
    store = LabelStore(f"sqlite:///{folder / 'labels.sqlite'}")
    add_studies(store, *(draw(clips / "all") for draw in (balance_clips, explained_clips, numbered_clips)), url)
    for study in store.studies.all():
        (clips / study.id).symlink_to(clips / "all")
    service = Service(store, ServiceSettings(SECRET, clips, clips_url, url))
    app = create_app(service)
    with _running(app, port), _running(ClipApp(clips, SECRET, [url]), clips_port):
        yield Site(url, service)
    store.close()


@contextlib.contextmanager
def _running(app: Any, port: int) -> Iterator[None]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), f"nothing listens on port {port}"
        time.sleep(0.02)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(20)


if __name__ == "__main__":
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as name, serve(Path(name), int(sys.argv[1])) as site:
        for row in site.store.studies.all():
            print(row.id, site.entrance(row.id), flush=True)
        threading.Event().wait()
