"""Settings of a fit of a reward model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args, get_type_hints

from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.precision import Precision
from rlhf_gym.ranges import bounds_in_words, bounds_of, is_within, setting
from rlhf_gym.reward_model.readout import Pooling, Readout, layer_stack

Loss = Literal["bradley_terry", "rao_kupper", "davidson", "plackett_luce", "regression", "ordinal"]
RATING_LOSSES: tuple[Loss, ...] = ("regression", "ordinal")
"""Losses on ratings of single responses; the others are on comparisons."""
RaterWeights = Literal["equal", "learned"]
SMALL_TRUNK = 20_000_000
"""Most weights of a trunk that is trained as a whole where ``trunk_layers`` is None."""
PART_OF_A_FROZEN_TRUNK = 0.9
"""Part of a frozen trunk's layers that is run by default: the last ones turn to the next token (docs/reward-models.md)."""
EPOCHS_OF_A_HEAD, PATIENCE_WITH_A_HEAD = 200, 10
"""Epochs and patience of a head on a frozen trunk, where they are None; an epoch then takes well under a second."""


@dataclass(frozen=True)
class FitConfig:
    """Settings of a fit; each field's metadata holds its help and its range, and so does ``rlhf-gym config``.

    A trunk of a few million parameters is trained as a whole, for one epoch, as in Ouyang et al. 2022: on the embedded model a
    second one fitted the raters' noise. A larger trunk stays frozen: its hidden states are computed once, and the head is
    trained on them for as many epochs as lower the validation loss.

    Raises:
        ConfigError: a value out of its range.
    """

    loss: Loss = setting(  # noqa: RUF009 - it is a field
        "bradley_terry",
        "of comparisons: bradley_terry (a tie is half a win), rao_kupper or davidson (ties have a probability, which is "
        "learned), plackett_luce (a ranking or the best of k as a whole); of ratings and thumbs: regression, ordinal "
        "(cumulative logit)",
    )
    learning_rate: float = setting(
        1e-3,
        "AdamW's peak for the trunk, after a warm-up over a tenth of the comparisons, then linear to 0; trunks of 100M "
        "parameters and more want less, if they are trained: 1e-5",
        above=0,
    )
    head_learning_rate: float | None = setting(None, "AdamW's peak for the head; null takes learning_rate", above=0)
    epochs: int | None = setting(
        None,
        "most passes over the preferences; the one with the lowest validation loss is kept; null takes 1, and "
        f"{EPOCHS_OF_A_HEAD} with a frozen trunk",
        at_least=1,
    )
    patience: int | None = setting(
        None,
        "stop after this many epochs without a lower validation loss; null takes 1, and "
        f"{PATIENCE_WITH_A_HEAD} with a frozen trunk",
        at_least=1,
    )
    batch_size: int = setting(32, "comparisons a step", at_least=1)
    tokens_per_batch: int = setting(
        8192, "most padded tokens of one forward pass; changes memory and speed, not the result", at_least=1
    )
    weight_decay: float = setting(0.01, "AdamW's weight decay; not on biases and norms", at_least=0)
    margin_scale: float = setting(
        0.0,
        "multiplies the raters' margins in the loss; 0 leaves them out (each rater has a scale of their own)",
        at_least=0,
    )
    label_smoothing: float = setting(0.0, "chance that a judgement is the wrong way round", at_least=0, below=0.5)
    centring: float = setting(
        0.0, "weight of the squared sum of two compared scores, which pulls scores to a mean of 0", at_least=0
    )
    rater_weights: RaterWeights = setting(  # noqa: RUF009 - it is a field
        "equal",
        "equal, or learned: each rater's rationality is fitted with the model (not with losses of ratings), so that who "
        "contradicts the others counts less",
    )
    attribute_weights: Mapping[str, float] = setting(
        {},
        "of ratings of several attributes: the weight of each, e.g. {helpful: 1, harmless: 2}; a rating is then their weighted "
        "sum, in losses of ratings and of the comparisons that ratings make. Empty takes the mean of all attributes",
    )
    attribute_heads: bool = setting(
        False,
        "a head for each attribute of attribute_weights, on one trunk, learned jointly from the ratings of the attribute "
        "(compared with one another in losses of comparisons), and from comparisons in it; the score is the weighted sum of "
        "the heads, whose weights can be changed at use",
    )
    dropout: float = setting(
        0.0, "in the trunk's dropout layers (where it has some) and before the head, while fitting", at_least=0, below=1
    )
    trunk_layers: int | None = setting(
        None,
        "train this many of the trunk's last layers, with its final norm; 0 trains the head alone, -1 everything; null trains "
        f"everything in a trunk of up to {SMALL_TRUNK // 1_000_000}M weights and the head alone on a larger one",
        at_least=-1,
    )
    layers: int | None = setting(
        None,
        "run this many of the trunk's first layers, and read the states there; null runs all, of a frozen trunk nine tenths",
        at_least=1,
    )
    pooling: Pooling | None = setting(  # noqa: RUF009 - it is a field
        None,
        "the states that the head reads: last, that of the last token (EOS), the mean over the response or over all tokens "
        "(mean), or both, the last and the response's; null takes last, and both with a frozen trunk",
    )
    precision: Precision = setting(  # noqa: RUF009 - it is a field
        "auto",
        "number format of a frozen trunk's matrix products; auto takes bf16 where the device multiplies faster in it",
    )
    validation_fraction: float = setting(
        0.2,
        "share of the prompts held out to judge the fit; dialogues with the same first turn count as one prompt",
        above=0,
        below=1,
    )
    max_grad_norm: float = setting(1.0, "largest norm of the gradient", above=0)
    seed: int = setting(0, "seed of the split, of the order and of dropout", at_least=0)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            value, bounds = getattr(self, f.name), bounds_of(f.metadata)
            if isinstance(value, bool):
                continue
            if isinstance(value, Mapping):
                _check_weights(f.name, value)
                continue
            optional = "None" in str(f.type)
            choices = _choices(hints[f.name])
            if (optional and value is None) or value in choices:
                continue
            if isinstance(value, str) or not is_within(value, bounds):
                expected = (", ".join(map(repr, choices)) or bounds_in_words(bounds)) + (
                    ", or None" if optional else ""
                )
                raise ConfigError(f"a reward model's {f.name} must be {expected}, got {value}")

        if self.attribute_heads and not self.attribute_weights:
            raise ConfigError(
                "a reward model's attribute_heads need attribute_weights, which name the attributes: e.g. {helpful: 1, "
                "harmless: 2}"
            )

    @property
    def fits_items(self) -> bool:
        """True if the fit learns from ratings or from items of attributes; preferences then judge it only."""
        return self.attribute_heads or self.loss in RATING_LOSSES

    @property
    def attributes(self) -> dict[str, float]:
        """The attributes with heads of their own, with their weights; empty for a model with one head."""
        return dict(self.attribute_weights) if self.attribute_heads else {}

    def decided(self, language_model: LanguageModel) -> FitConfig:
        """The same with ``trunk_layers`` decided for a whole trunk: :meth:`readout` may cut it below what counts as small."""
        return replace(self, trunk_layers=self.trains(language_model))

    def ways(self, language_model: LanguageModel) -> list[FitConfig]:
        """What is worth a try on a whole trunk: a small one is trained as a whole, or stays frozen, if nothing says which.

        Held-out judgements choose: on the responses of a run the former is better, on few dialogues that are unlike what the
        trunk was trained on the latter (docs/reward-models.md).
        """
        decided = self.decided(language_model)
        if self.trunk_layers is not None or decided.trunk_layers == 0:
            return [decided]
        return [decided, replace(self, trunk_layers=0)]

    def readout(self, language_model: LanguageModel) -> Readout:
        """What a reward model on this language model reads, with the defaults that suit its trunk."""
        frozen = self.trains(language_model) == 0
        number = len(layer_stack(language_model)[1])
        layers = round(PART_OF_A_FROZEN_TRUNK * number) if frozen and self.layers is None and number else self.layers
        return Readout(layers, self.pooling or ("both" if frozen else "last"))

    def trains(self, language_model: LanguageModel) -> int:
        """The number of a trunk's last layers to train; 0 for the head alone, -1 for everything."""
        if self.trunk_layers is not None:
            return self.trunk_layers
        if language_model.quantization is not None:
            return 0
        weights = sum(p.numel() for p in language_model.trunk.parameters())
        return -1 if weights <= SMALL_TRUNK else 0


def _check_weights(name: str, weights: Mapping[str, float]) -> None:
    """Refuse what is no number, and weights that are all 0."""
    numbers = [
        w for w in weights.values() if isinstance(w, int | float) and not isinstance(w, bool) and math.isfinite(w)
    ]
    if len(numbers) < len(weights) or (weights and not any(numbers)):
        raise ConfigError(
            f"a reward model's {name} must be finite numbers, not all 0, by attribute; got {dict(weights)}"
        )


def _choices(hint: object) -> list[str]:
    """The texts that a literal type, or a union with one, allows."""
    return [c for part in (hint, *get_args(hint)) for c in get_args(part) if isinstance(c, str)]
