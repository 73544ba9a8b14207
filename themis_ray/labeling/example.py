"""A study to look at: real clips of Pendulum-v1, with practice and gold pairs, made in a few seconds on first start.

How well the pole is held up differs from clip to clip on purpose: each clip has a controller of another strength.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from themis_ray.clips import write_clip
from themis_ray.envs.display import prepare_drawing
from themis_ray.labeling.clip_server import clip_path
from themis_ray.labeling.store import LabelStore
from themis_ray.labeling.study import ChoiceQuestion, Consent, ScaleQuestion, StudyConfig
from themis_ray.wire import NewQuery, NewSide

__all__ = ["EXAMPLE_ID", "add_example"]

EXAMPLE_ID = "example"
ENV_ID = "Pendulum-v1"
ACTOR = "themis serve"
NUM_FRAMES = 50
CLIP_FPS = 15.0
NUM_CLIPS = 12
# Pairs of clips, numbered by how well the pole is held up, so far apart that the right answer is beyond doubt.
PRACTICE = ((0, 11), (10, 1))
GOLD = ((11, 2), (1, 9), (10, 0))

CONFIG = StudyConfig(
    id=EXAMPLE_ID,
    title="Example: a pendulum that is held up",
    question="In which clip is the pole held up better?",
    instructions=(
        "A motor swings a pole. **Upright and still is best.** A pole that hangs or turns round is bad.\n\n"
        "Choose the better clip, *equal* if neither is better, or *can't tell*."
    ),
    consent=Consent(
        version="1",
        text="This is an example to try the service with. Your answers are stored on this machine, without your name.",
    ),
    before=(ChoiceQuestion(kind="choice", id="knows", text="Have you compared clips before?", options=("yes", "no")),),
    after=(
        ScaleQuestion(
            kind="scale", id="hard", text="How hard was it to choose?", low_label="easy", high_label="very hard"
        ),
    ),
    num_practice=len(PRACTICE),
    queries_per_annotator=12,
    overlap=5,
    gold_share=0.15,
    repeat_share=0.1,
)


@dataclass(frozen=True)
class ExampleClip:
    """A clip in the folder of the study.

    Attributes:
        name: Its file.
        mean_reward: Of its steps; 0 is best.
    """

    name: str
    mean_reward: float


def add_example(store: LabelStore, clips: Path) -> bool:
    """Adds the example study where it is not there yet.

    Args:
        store: Where studies are.
        clips: Folder of all clips.

    Returns:
        Whether it was added now.
    """
    if any(study.id == EXAMPLE_ID for study in store.studies.all()):
        return False
    made = make_clips(clips)
    store.studies.create(CONFIG, ACTOR)
    for clip in made:
        num_bytes = clip_path(clips, EXAMPLE_ID, clip.name).stat().st_size
        store.studies.add_clip(EXAMPLE_ID, clip.name, num_bytes)
    sides = [
        NewSide(segment_id=f"example-{number}", clip=clip.name, num_frames=NUM_FRAMES, clip_fps=CLIP_FPS)
        for number, clip in enumerate(made)
    ]
    store.studies.add_queries(EXAMPLE_ID, make_queries(sides, [clip.mean_reward for clip in made]), ACTOR)
    return True


def make_queries(sides: list[NewSide], mean_rewards: list[float]) -> list[NewQuery]:
    """Returns the practice and gold pairs, and ordinary ones of clips that are near each other."""
    about = {"env_id": ENV_ID}
    queries = [
        NewQuery.model_validate(
            {
                "id": f"{kind}-{number}",
                "kind": kind,
                "left": sides[left],
                "right": sides[right],
                "gold_choice": "left" if left > right else "right",
                "about": about,
            }
        )
        for kind, pairs in (("practice", PRACTICE), ("gold", GOLD))
        for number, (left, right) in enumerate(pairs)
    ]
    near = [(left, left + step) for step in (1, 2, 3) for left in range(NUM_CLIPS - step)]
    for number, pair in enumerate(near):
        left, right = pair if number % 2 else pair[::-1]
        rewards = {"left_mean_reward": mean_rewards[left], "right_mean_reward": mean_rewards[right]}
        queries.append(
            NewQuery(id=f"pair-{number:02d}", left=sides[left], right=sides[right], about={**about, **rewards})
        )
    return queries


def make_clips(folder: Path) -> list[ExampleClip]:
    """Draws the clips, worst first, into the study's part of the folder."""
    prepare_drawing("pygame")
    made = []
    for number in range(NUM_CLIPS):
        frames, mean_reward = _play(number / (NUM_CLIPS - 1), seed=number)
        path = write_clip(frames, folder / EXAMPLE_ID, clip_fps=CLIP_FPS)
        made.append(ExampleClip(path.name, mean_reward))
    return made


def _play(skill: float, *, seed: int) -> tuple[NDArray[np.uint8], float]:
    """Plays an episode that starts and is steered the better the greater skill is, from 0 to 1.

    Returns:
        (NUM_FRAMES, H, W, 3) uint8, and the mean reward.
    """
    rng = np.random.default_rng(seed)
    env = gym.make(ENV_ID, render_mode="rgb_array", disable_env_checker=True)
    env.reset(seed=seed)
    # Radians from upright: at skill 1 nearly there, at skill 0 hanging.
    angle = (1 - skill) * np.pi * 0.9 + 0.1
    env.unwrapped.state = np.array([angle * rng.choice([-1, 1]), 0.0])  # type: ignore[attr-defined]
    frames, rewards = [], []
    for _ in range(NUM_FRAMES):
        angle, speed = env.unwrapped.state  # type: ignore[attr-defined]
        steer = -skill * (12.0 * np.arctan2(np.sin(angle), np.cos(angle)) + 3.0 * speed)
        torque = np.clip(steer + (1 - skill) * rng.uniform(-2, 2), -2.0, 2.0)
        _, reward, *_ = env.step(np.array([torque], np.float32))
        rewards.append(float(reward))
        frame = np.asarray(env.render())
        # 500 pixels a side are more than a page shows; the mean of four keeps the pole's edge smooth.
        half = frame.reshape(frame.shape[0] // 2, 2, frame.shape[1] // 2, 2, 3).mean((1, 3))
        frames.append(half.astype(np.uint8))
    env.close()  # type: ignore[no-untyped-call]
    return np.stack(frames), float(np.mean(rewards))
