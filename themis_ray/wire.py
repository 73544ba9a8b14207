"""What is sent between a labelling service and those who use it: people's pages, programs, training.

`docs/design/labelling-service.md` says which call takes and returns which of these. Choices are the four words of
`Choice`. In what annotators send, left and right are sides of the screen; everywhere else they are those of the query.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from themis_ray.data import Choice

__all__ = [
    "EXPLAINED",
    "EXPLANATION_METHODS",
    "OVERLAY_PATTERN",
    "Action",
    "AnswerPage",
    "AnswerReceipt",
    "AssignmentView",
    "ClipName",
    "ClipView",
    "FeedbackKind",
    "JoinRequest",
    "LongId",
    "NewAnswer",
    "NewQuery",
    "NewSide",
    "OverlayName",
    "Progress",
    "QueryKind",
    "Session",
    "Slug",
    "Stage",
    "StoredAnswer",
    "Wire",
    "Work",
]

Stage = Literal["consent", "before", "practice", "work", "after", "done", "withdrawn", "screened_out"]
FeedbackKind = Literal["pairwise", "rating", "steps", "demonstration"]
QueryKind = Literal["ordinary", "gold", "practice"]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
ClipName = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}\.(webm|mp4)$")]
Action = Annotated[int, Field(ge=0, lt=2**31)]
LongId = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:~-]+$")]

# What an overlay may explain, and how; the explanations themselves are out of the service's reach, so that it needs no
# torch. A test holds these to what `themis_ray.explaining` knows.
EXPLAINED = ("action", "value", "reward", "preference")
EXPLANATION_METHODS = (
    "integrated_gradients",
    "kernel_shap",
    "saliency",
    "smooth_grad",
    "input_x_gradient",
    "guided_backprop",
    "deconvolution",
    "guided_grad_cam",
    "lrp",
    "deep_lift",
    "deep_lift_shap",
    "gradient_shap",
    "feature_ablation",
    "occlusion",
    "shapley_sampling",
    "permutation_importance",
)
OVERLAY_PATTERN = rf"^({'|'.join(EXPLAINED)})(-({'|'.join(EXPLANATION_METHODS)}))?$"
OverlayName = Annotated[str, StringConstraints(pattern=OVERLAY_PATTERN)]

MAX_CLIP_FRAMES = 20_000
MAX_OVERLAYS = 16
MAX_MS = 24 * 3600 * 1000
MAX_REPLAYS = 100_000
MAX_SPEED = 16
MAX_SEED = 2**63 - 1


class Wire(BaseModel):
    """Every message: unknown fields are refused, so that a misspelt one is not lost."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Progress(Wire):
    """How far an annotator is."""

    num_answered: int = Field(ge=0, description="Answers that count, practice left out.")
    num_total: int = Field(ge=0, description="Queries per annotator.")


class JoinRequest(Wire):
    """Someone comes to a study."""

    invitation: str = Field(min_length=1, max_length=2000, description="The signed part of the study's link.")
    panel: dict[str, Annotated[str, StringConstraints(max_length=128)]] = Field(
        default={}, max_length=16, description="What the panel puts into the link, such as PROLIFIC_PID."
    )


class Session(Wire):
    """Who the caller is and what comes next."""

    annotator_id: str
    study: str
    stage: Stage
    arm: str = Field(description="Which arm of the study; empty where it has none.")
    csrf_token: str = Field(description="Send as X-CSRF-Token with everything that changes something.")
    progress: Progress


class ClipView(Wire):
    """A clip that can be watched."""

    url: str
    num_frames: int = Field(ge=1)
    clip_fps: float = Field(gt=0)
    overlay_url: str | None = Field(
        default=None, description="The same clip with the explanation of the person's arm; None where none is shown."
    )


class AssignmentView(Wire):
    """A query as one annotator sees it. Whether it is gold or repeated is not told."""

    assignment_id: str
    feedback: FeedbackKind
    left: ClipView = Field(description="On the left of the screen.")
    right: ClipView | None = Field(description="On the right of the screen; None where one segment is judged.")
    is_practice: bool
    leased_until: datetime
    overlay: str = Field(default="", description="Name of the explanation that is shown with it; empty for none.")


class Work(Wire):
    """What an annotator has on the desk."""

    stage: Stage
    assignments: tuple[AssignmentView, ...] = Field(description="In the order in which they are to be answered.")
    progress: Progress
    is_waiting: bool = Field(
        default=False, description="Whether there is nothing to do now and may be later; ask again after a while."
    )


class NewAnswer(Wire):
    """An answer as it leaves the page. Sending it twice is the same as sending it once."""

    answer_id: LongId = Field(description="Chosen by the sender; a UUID.")
    assignment_id: LongId
    choice: Choice | None = Field(default=None, description="Of pairwise: by the sides of the screen.")
    rating: float | None = Field(default=None, ge=0, le=1, description="Of rating: from worst 0 to best 1.")
    steps: tuple[Literal[-1, 0, 1], ...] | None = Field(
        default=None, max_length=MAX_CLIP_FRAMES, description="Of steps: bad, nothing or good for each frame."
    )
    actions: tuple[Action, ...] | None = Field(
        default=None, max_length=MAX_CLIP_FRAMES, description="Of demonstration: the discrete actions taken."
    )
    reset_seed: int | None = Field(default=None, ge=0, description="Of demonstration: the seed of the episode.")
    response_ms: int = Field(ge=0, le=MAX_MS, description="From the first frame shown to the answer.")
    watched_ms: int = Field(default=0, ge=0, le=MAX_MS, description="How long clips were moving.")
    num_replays: int = Field(default=0, ge=0, le=MAX_REPLAYS)
    speed: float = Field(default=1.0, gt=0, le=MAX_SPEED)
    overlay_ms: int = Field(default=0, ge=0, le=MAX_MS, description="How long clips were moving with the explanation.")
    count: int = Field(default=3, ge=0, le=10, description="How many assignments to hold afterwards.")


class AnswerReceipt(Wire):
    """The answer is stored."""

    answer_id: str
    is_duplicate: bool = Field(description="Whether it had been stored before.")
    work: Work
    feedback: str = Field(default="", description="In practice: what was expected, for the annotator to read.")


class NewSide(Wire):
    """One side of a query."""

    segment_id: LongId
    clip: ClipName
    num_frames: int = Field(ge=1, le=MAX_CLIP_FRAMES)
    clip_fps: float = Field(default=15.0, gt=0, le=240)
    overlays: dict[OverlayName, ClipName] = Field(
        default={}, max_length=MAX_OVERLAYS, description="Explained clips, frame by frame the same, by explanation."
    )


class NewQuery(Wire):
    """A query that a study is to put to people. Its clips are there already."""

    id: LongId
    feedback: FeedbackKind = "pairwise"
    kind: QueryKind = "ordinary"
    left: NewSide
    right: NewSide | None = None
    gold_choice: Choice | None = Field(default=None, description="The right answer; of gold and practice queries.")
    overlap: int | None = Field(default=None, ge=1, le=1000, description="Answers wanted; None: as the study says.")
    about: dict[str, Any] = Field(
        default={}, description="Where it comes from: env_id, run, checkpoint, reward_version, seed, num_env_steps."
    )


class StoredAnswer(Wire):
    """An answer as training and exports read it."""

    number: int = Field(description="Grows with every answer of the service; the cursor.")
    answer_id: str
    query_id: str
    kind: QueryKind
    feedback: FeedbackKind
    annotator_id: str
    arm: str
    choice: Choice | None
    rating: float | None
    steps: tuple[int, ...] | None
    actions: tuple[int, ...] | None
    reset_seed: int | None
    is_flipped: bool = Field(description="Whether the query's left was shown on the right.")
    repeat: int
    is_undone: bool
    response_ms: int
    watched_ms: int
    num_replays: int
    speed: float
    overlay: str = Field(default="", description="Name of the explanation that was shown with it; empty for none.")
    overlay_ms: int
    assigned_at: datetime
    answered_at: datetime
    weight: float = Field(default=1.0, description="Reliability of the annotator; 1 where it is not known.")


class AnswerPage(Wire):
    """Answers in the order of arrival, from a cursor on."""

    answers: tuple[StoredAnswer, ...]
    withdrawn: tuple[str, ...] = Field(description="All annotators of the study that have withdrawn.")
    undone: tuple[str, ...] = Field(description="Ids of all answers of the study that were undone.")
    cursor: int = Field(description="Send it as after= to get what is newer.")
    num_waiting: int = Field(description="Answers still wanted: places of ordinary queries without one.")
    status: Literal["running", "paused", "stopped"]
