"""A simulated rater whose parameters were fitted to answers: estimate, uncertainty, what it predicts, and its file.

A report reads one, and does without torch; :mod:`rlhf_gym.raters.rater_fit` makes one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from rlhf_gym.errors import ConfigError
from rlhf_gym.feedback.calibration import CalibrationBin
from rlhf_gym.feedback.queries import content_id
from rlhf_gym.raters.behaviour import Behaviour

FITTED_PREFIX = "fitted:"
"""A rater's name that begins so names the file of a fitted rater."""
KIND = "rlhf-gym fitted rater 1"
_WORDS = {
    "beta": "rationality, per unit of the reward",
    "position_bias": "reward added to the response shown first",
    "length_bias": "reward added for each word",
    "error_rate": "share of blind answers",
    "lapse_rate": "share of answers that take what is shown first, unread",
    "rao_kupper_theta": "width of ties: P(tie) between equals = (theta - 1) / (theta + 1)",
    "skip_rate": "share of queries skipped",
}


@dataclass(frozen=True)
class FittedRater:
    """Parameters of a simulated rater, estimated by maximum likelihood.

    Attributes:
        knobs: fields of :class:`~rlhf_gym.raters.Behaviour`; rewards in the unit of the reward that they were fitted with.
        intervals: a 95% interval of each, by the bootstrap over prompts.
        reward: name of that reward.
        reward_mean: its mean over the responses that were judged.
        reward_std: its standard deviation there, which carries the rater over to a reward in another unit.
        n_answers: answers.
        n_prompts: prompts.
        n_raters: raters who gave them.
        log_likelihood: nats per answer, of answers about prompts that were held out (five folds), by who predicts: ``fitted``,
            ``default`` (``--rater simulated``), ``coin``. Of answers that are neither skips nor ties.
        gain_standard_error: of ``fitted`` minus ``coin``, over prompts.
        calibration: of held-out comparisons: the probability that was predicted, and the share that was observed.
        ece: expected calibration error.
        ece_floor: that of a perfectly calibrated rater of as many comparisons.
        agreement: share of equal verdicts of two raters on the same two responses; None where nobody judged the same.
        agreement_predicted: what the fitted rater and its twin would have there.
        left_out: number of answers that were left out, by reason.
    """

    knobs: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    reward: str
    reward_mean: float
    reward_std: float
    n_answers: int
    n_prompts: int
    n_raters: int
    log_likelihood: dict[str, float]
    gain_standard_error: float
    calibration: list[CalibrationBin]
    ece: float
    ece_floor: float
    agreement: float | None
    agreement_predicted: float | None
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def behaviour(self) -> Behaviour:
        """The rater's behaviour, in the unit of the reward that it was fitted with."""
        return Behaviour(**cast(Any, self.knobs))

    @property
    def id(self) -> str:
        """Eight hexadecimal digits that depend on everything that was estimated."""
        return content_id(self.as_dict())[:8]

    @property
    def shown(self) -> list[tuple[str, str, str, str, str]]:
        """Each parameter as printed: its name, the estimate, the ends of its interval, and what it means."""
        rows = []
        for name, words in _WORDS.items():
            values = (self.knobs[name], *self.intervals[name])
            estimate, low, high = (f"{value:.1%}" if name.endswith("_rate") else f"{value:.3g}" for value in values)
            rows.append((name, estimate, low, high, words))
        return rows

    def behaviour_for(self, reward_std: float) -> Behaviour:
        """The behaviour for a reward in another unit: alike in units of the rewards' standard deviations.

        Args:
            reward_std: the other reward's standard deviation over responses, above 0.
        """
        return self.behaviour.in_unit(reward_std / self.reward_std)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"kind": KIND, **asdict(self)}

    def save(self, path: Path | str) -> None:
        """Write a JSON file that ``--rater fitted:FILE`` takes."""
        Path(path).write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> FittedRater:
        """Read a file of :meth:`save`.

        Raises:
            ConfigError: there is no such file, or it is none.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"the fitted rater {path} cannot be read ({why}); `rlhf-gym fit-rater DATA --out {path}` writes one"
            ) from None
        if not isinstance(values, Mapping) or values.get("kind") != KIND:
            raise ConfigError(f"{path} holds no fitted rater; `rlhf-gym fit-rater DATA --out FILE` writes one")
        try:
            given = {name: values[name] for name in cls.__dataclass_fields__}
            given["calibration"] = [CalibrationBin(**row) for row in given["calibration"]]
            given["intervals"] = {name: (float(low), float(high)) for name, (low, high) in given["intervals"].items()}
            found = cls(**given)
            found.behaviour  # noqa: B018 - checks the parameters
            if not (math.isfinite(found.reward_std) and found.reward_std > 0):
                raise ValueError(f"reward_std must be above 0, got {found.reward_std}")
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise ConfigError(f"the fitted rater {path} is not whole: {error}") from None
        return found

    def as_text(self) -> str:
        """The estimates and predictions as plain text."""
        lines = [
            f"fitted to {self.n_answers} answers of {self.n_raters} rater{'s' * (self.n_raters != 1)} about "
            f"{self.n_prompts} prompts, with the reward "
            f"{self.reward!r} (standard deviation {self.reward_std:.4g})",
            "parameter          estimate   95% interval",
        ]
        for name, estimate, low, high, words in self.shown:
            lines.append(f"{name:<17} {estimate:>9}   {f'[{low}, {high}]':<20}  {words}")
        found = self.log_likelihood
        lines += [
            "held-out log-likelihood, nats per answer (higher is better):",
            f"  fitted rater {found['fitted']:.4f}, default simulated rater {found['default']:.4f}, coin {found['coin']:.4f}",
        ]
        gain, half = found["fitted"] - found["coin"], 1.96 * self.gain_standard_error
        says = "predicts better than a coin" if gain > half else "does not predict better than a coin beyond chance"
        lines += [
            f"  the fitted rater {says}: {gain:+.4f} ± {half:.4f}",
            f"calibration error {self.ece:.3f} (a perfectly calibrated rater: {self.ece_floor:.3f}), held out:",
        ]
        lines += [
            f"  predicted {row.confidence:.1%}, observed {row.accuracy:.1%}, of {row.count}" for row in self.calibration
        ]
        if self.agreement is not None:
            lines.append(
                f"raters agree in {self.agreement:.1%}; two fitted ones would in {self.agreement_predicted:.1%}"
            )
        if self.left_out:
            lines.append("left out: " + ", ".join(f"{n} {reason}" for reason, n in self.left_out.items()))
        return "\n".join(lines)
