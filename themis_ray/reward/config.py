"""How the reward ensemble is built and fitted: its settings, and the networks there are."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

DEFAULT_NUM_EPOCHS = {"vector": 50, "grid": 50, "image": 10, "mixed": 10}
# Ten passes from scratch would be too few for convolutions.
DEFAULT_FROM_SCRATCH = {"vector": True, "grid": True, "image": False, "mixed": False}
DEFAULT_LABEL_MARGIN = 0.05

REWARD_MODELS = {
    "mlp": "vectors: three hidden layers of 256 units over observation and action, all members in one batched product",
    "cnn": "images: three convolutions (16, 32 and 32 filters) as grouped convolutions, then the perceptron",
    "grid": "MiniGrid's 7 x 7 cells: two convolutions of 2 x 2 (16 and 32 filters), then the perceptron",
    "mixed": "vectors that hold images: for each image convolutions as above, then the perceptron over all parts",
}
"""Name and one line about each network; which one is used follows from the kind of observation."""

REWARD_OPTIONS = (
    *(
        "label_margin",
        "mistake_rate",
        "temporal_crop",
        "filter_wrong_labels",
        "pseudo_label_threshold",
        "heldout_share",
    ),
    *("early_stop_patience", "from_scratch", "normalize_predictions", "disagreement_bonus"),
)
"""Settings of `RewardConfig` that change what is learned; by default all but `label_margin`, `from_scratch` are off."""


class RewardConfig(BaseModel):
    """How the reward ensemble is built and fitted; the defaults are B-Pref's but for three settings.

    There num_epochs is 200, label_margin 0 and from_scratch false.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ensemble_size: PositiveInt = Field(3, description="members of the reward ensemble")
    hidden_sizes: tuple[PositiveInt, ...] = Field(
        (256, 256, 256), min_length=1, description="units of each hidden layer of a member"
    )
    learning_rate: float = Field(3e-4, gt=0, description="Adam's step size")
    batch_size: PositiveInt = Field(128, description="queries per gradient step")
    num_epochs: PositiveInt | None = Field(
        None, description="most passes over all preferences in one fit; None: 50, 10 with images"
    )
    target_accuracy: float = Field(
        0.97, gt=0, le=1, description="a fit stops once the mean training accuracy over members is above this"
    )
    label_margin: float | None = Field(
        None,
        ge=0,
        lt=0.5,
        description=f"label of the better side is 1 minus this. None: {DEFAULT_LABEL_MARGIN}, 0 with "
        "filter_wrong_labels and with cpl",
    )
    mistake_rate: float = Field(
        0.0, ge=0, lt=0.5, description="share of the answers that the fit takes to be the opposite of what was meant"
    )
    weight_decay: float = Field(0.0, ge=0, description="Adam's L2 penalty")
    max_batch_bytes: PositiveInt = Field(
        2**28, description="a gradient step that would hold more activations than this is split into micro-batches"
    )
    reliability_weights: bool | None = Field(
        None,
        description="whether an answer weighs in the loss as much as its annotator is trusted. None: where a study of "
        "teacher.kind=human tells weights, as it does with several answers per query; false: all weigh the same",
    )
    temporal_crop: int = Field(
        0, ge=0, description="most steps that a pass cuts off each segment of a pair, anew in every pass (SURF)"
    )
    filter_wrong_labels: bool = Field(
        False, description="a pass leaves out answers that look wrong, and flips those that look very wrong (RIME)"
    )
    pseudo_label_threshold: float | None = Field(
        None,
        gt=0.5,
        lt=1,
        description="queries that nobody answered join a pass where the mean p(left) is above this or below 1 minus "
        "this (SURF: 0.99); None: none join",
    )
    pseudo_label_weight: float = Field(
        0.25, gt=0, description="weight of such a query, of an answered one 1 (SURF: all together weigh as much)"
    )
    pseudo_labels_per_label: PositiveInt = Field(4, description="unanswered queries drawn per answered one in each fit")
    heldout_share: float = Field(
        0.0, ge=0, lt=1, description="share of the preferences that is not fitted but measures the fit"
    )
    early_stop_patience: PositiveInt | None = Field(
        None,
        description="a fit stops after this many passes without a lower held-out loss and goes back to the best pass; "
        "None: off",
    )
    from_scratch: bool | None = Field(
        None,
        description="every fit starts from freshly drawn weights, not from those of the fit before; None: true, false "
        "with images",
    )
    normalize_predictions: bool = Field(
        False, description="predicted rewards have mean 0 and std 1 over the steps of the labelled segments"
    )
    rating_weight: float = Field(1.0, ge=0, description="weight of the mean loss of ratings in a fit, preferences: 1")
    step_weight: float = Field(1.0, ge=0, description="weight of the mean loss of judged steps")
    demonstration_weight: float = Field(1.0, ge=0, description="weight of the mean loss of demonstrations")
    disagreement_bonus: float = Field(
        0.0, ge=0, description="the learner is paid this times the std of the members' rewards on top (RUNE: 0.05)"
    )
    disagreement_bonus_decay: float = Field(
        0.9999, gt=0, le=1, description="factor of the bonus per env step, applied at each fit"
    )

    @model_validator(mode="after")
    def _check_early_stop(self) -> Self:
        if self.early_stop_patience is not None and self.heldout_share == 0:
            raise ValueError("early_stop_patience needs held-out preferences. Give heldout_share too, for example 0.1")
        return self
