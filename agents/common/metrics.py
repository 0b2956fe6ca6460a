"""Metrics of rollouts and minibatches under the names that the field's dashboards use, and the guard against NaN."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from rlhf_gym.agents.common.kl import kl_estimate
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.errors import NotFiniteError
from rlhf_gym.text import distinct_2


def rollout_metrics(rollout: Rollout, eos_ids: Sequence[int]) -> dict[str, float]:
    """Metrics of a rollout: sums over each response, averaged over responses.

    ``objective/kl`` is the k1 estimate in nats per response, whatever ``kl_estimator`` is, of the KL from the reference's own
    distribution. Where the policy may not sample every token (NLPO's or an environment's masks, top-k, top-p),
    ``objective/kl_in_mask`` is that from the reference within what it may sample. Without a reference there is neither.
    ``objective/entropy`` is the samples' negative log-probability per response, ``objective/entropy_per_token`` that per token;
    ``objective/scores`` the environment's reward before any shaping. Episodes whose reward failed are counted
    (``reward/skipped``, ``reward/skipped_NAME``), with their groups as ``reward/left_out``, and are in no other metric.

    Args:
        rollout: the episodes.
        eos_ids: the tokens that end a response.
    """
    skipped = skipped_metrics(rollout)
    if not rollout.episodes:
        return skipped
    scores = torch.tensor([e.score for e in rollout.episodes])
    lengths = torch.tensor(rollout.lengths, dtype=torch.float32)
    eos_tokens = sum(e.response_ids[-1] in eos_ids for e in rollout.episodes)
    out = {"objective/kl": response_kl(rollout)} if rollout.has_reference else {}
    out |= {
        "objective/entropy": -(rollout.log_probs * rollout.mask).sum(1).mean().item(),
        "objective/scores": scores.mean().item(),
        "objective/scores_std": scores.std(correction=0).item(),
        "response_length": lengths.mean().item(),
        "response_length_std": lengths.std(correction=0).item(),
        "val/num_eos_tokens": float(eos_tokens),
        "eos_rate": eos_tokens / len(rollout.episodes),
        "ended_rate": float(np.mean([e.ended for e in rollout.episodes])),
        "truncated_rate": float(np.mean([not e.ended for e in rollout.episodes])),
        "objective/entropy_per_token": -rollout.log_probs[rollout.mask].mean().item(),
        **quantiles("advantages", rollout.advantages[rollout.mask]),
    }
    responses = [str(e.info["response"]) for e in rollout.episodes if "response" in e.info]
    if not math.isnan(share := distinct_2(responses)):
        out["distinct_2"] = share
    if rollout.restricted:
        within = (kl_estimate(rollout.log_probs, rollout.reference_log_probs) * rollout.mask).sum(1)
        out["objective/kl_in_mask"] = within.mean().item()
    terms: dict[str, list[float]] = {}
    for episode in rollout.episodes:
        for name, value in episode.info.get("reward_terms", {}).items():
            terms.setdefault(name, []).append(float(value))
    out |= {f"reward/{name}": float(np.mean(values)) for name, values in terms.items()}
    return out | conversation_metrics(rollout) | skipped


ENDS = ("terminated", "truncated", "turn_limit", "token_limit")
"""Why a conversation ends; see :attr:`~rlhf_gym.agents.common.rollout.Episode.end`."""


def conversation_metrics(rollout: Rollout) -> dict[str, float]:
    """Metrics of conversations; empty where there are none.

    ``conversation/turns`` counts the policy's turns, ``conversation/context_tokens`` the tokens that a pass reads beside
    those that it learns from, ``conversation/END_share`` is the share of the episodes that ended so.

    Args:
        rollout: the episodes, at least one.
    """
    episodes = [e for e in rollout.episodes if e.turns]
    if not episodes:
        return {}
    context = [sum(e.row_lengths) - len(e.response_ids) for e in episodes]
    shares = {f"conversation/{end}_share": float(np.mean([e.end == end for e in episodes])) for end in ENDS}
    turns = float(np.mean([len(e.turns) for e in episodes]))
    return {"conversation/turns": turns, "conversation/context_tokens": float(np.mean(context)), **shares}


QUANTILES = (0.01, 0.5, 0.99)
"""The quantiles of ratios and advantages that are reported."""


def quantiles(name: str, values: Tensor) -> dict[str, float]:
    """Quantiles as metrics, ``NAME/q01``, ``NAME/q50`` and ``NAME/q99``: of the values themselves, without interpolation.

    Args:
        name: the values' name.
        values: ``[N]``, at least one.
    """
    places = [round(share * (len(values) - 1)) for share in QUANTILES]
    found = values.detach().sort().values[places].tolist()
    return {f"{name}/q{round(100 * share):02}": value for share, value in zip(QUANTILES, found, strict=True)}


def response_kl(rollout: Rollout) -> float:
    """``objective/kl``, the mean over a rollout's responses; NaN for none, and without a reference."""
    return float(rollout.kl.sum(1).mean())


# A minibatch's metrics under TRL's names and stable-baselines3's, with their sign.
MINIBATCH_METRICS: dict[str, tuple[int, str]] = {
    "loss/policy_avg": (1, "policy loss"), "loss/value_avg": (1, "value loss"), "loss/kl_avg": (1, "kl loss"),
    "policy/entropy_avg": (1, "entropy"), "policy/clipfrac_avg": (1, "clipped"), "policy/approxkl_avg": (1, "k2"),
    "val/clipfrac_avg": (1, "value clipped"), "val/ratio": (1, "ratio"), "train/loss": (1, "loss"),
    "train/policy_gradient_loss": (1, "policy loss"), "train/value_loss": (1, "value loss"),
    "train/entropy_loss": (-1, "entropy"), "train/clip_fraction": (1, "clipped"), "train/approx_kl": (1, "k3"),
}  # fmt: skip


def means(minibatches: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The means of minibatches' metrics, and the variance of the mean ratios."""
    out = {name: float(np.mean(values)) for name, values in minibatches.items()}
    if ratios := minibatches.get("val/ratio"):
        out["val/ratio_var"] = float(np.var(ratios, ddof=1)) if len(ratios) > 1 else 0.0
    return out


class PhaseSeconds(dict[str, float]):
    """Wall-clock seconds of an iteration by phase: generation, reward (waited for), reference, learning; and scoring.

    Scoring is the time inside the reward. It overlaps with the other phases, so it is no part of the total.
    """

    def __missing__(self, phase: str) -> float:
        return 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add a block's time to a phase, less what the block itself adds to other phases."""
        before, began = self.total, time.perf_counter()
        try:
            yield
        finally:
            self[name] += time.perf_counter() - began - (self.total - before)

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum(seconds for phase, seconds in self.items() if phase != "scoring")

    @property
    def reward_share(self) -> float | None:
        """Share of the time that was spent waiting for rewards, 0 to 1; None where nobody measured it."""
        return self["reward"] / self.total if "reward" in self else None

    def metrics(self, tokens: int) -> dict[str, float]:
        """The metrics ``time/...`` of an iteration that generated so many response tokens."""
        out = {f"time/{phase}_seconds": seconds for phase, seconds in self.items()}
        if self.reward_share is not None:
            out["time/reward_share"] = self.reward_share
        return out | {"time/tokens_per_second": tokens / self.total}


def skipped_metrics(rollout: Rollout) -> dict[str, float]:
    """Numbers of episodes without a score, in all and by the reward that failed; empty where no reward may leave one out."""
    every = [*rollout.episodes, *rollout.left_out]
    if not any("reward_skipped" in episode.info for episode in every):
        return {}
    names = [episode.skipped for episode in every if episode.skipped]
    by_name = {f"reward/skipped_{name}": float(names.count(name)) for name in dict.fromkeys(names)}
    return {"reward/skipped": float(len(names)), "reward/left_out": float(len(rollout.left_out))} | by_name


@torch.no_grad()
def ratio_metrics(log_probs: Tensor, old_log_probs: Tensor) -> dict[str, Tensor]:
    """The distance of the policy from the one that generated the tokens; sums over tokens, ``[]`` each.

    Args:
        log_probs: ``[N]``, under the policy now.
        old_log_probs: ``[N]``, under the policy that generated the tokens.

    Returns:
        ``ratio`` and ``squared ratio``; ``difference``, the absolute one of the log-probabilities; ``k3``, the KL estimate
        that SB3 reports and ``target_kl`` is compared with; ``k2``, the one that TRL reports as ``policy/approxkl_avg``.
    """
    log_ratio = log_probs.detach() - old_log_probs
    # The samples are the old policy's, so these estimate KL(old || new).
    return {
        "ratio": log_ratio.exp().sum(),
        "squared ratio": (2 * log_ratio).exp().sum(),
        "difference": log_ratio.abs().sum(),
        "k3": kl_estimate(old_log_probs, log_probs.detach(), "k3").sum(),
        "k2": kl_estimate(old_log_probs, log_probs.detach(), "k2").sum(),
    }


def read_once(metrics: Mapping[str, Tensor], device: torch.device | None = None) -> dict[str, float]:
    """Numbers ``[]`` by name, with one transfer from their device: each ``.item()`` would wait for it.

    Args:
        metrics: by name.
        device: where they are gathered; None where all of them are on one device.
    """
    if not metrics:
        return {}
    tensors = [metric.detach() if device is None else metric.detach().to(device) for metric in metrics.values()]
    return dict(zip(metrics, torch.stack(tensors).tolist(), strict=True))


def check_rollout(rollout: Rollout, where: str) -> None:
    """Refuse NaN and infinity in a rollout's tables.

    Args:
        rollout: the rollout.
        where: the place in training, for the message.

    Raises:
        NotFiniteError: names the first table that has one, and the place.
    """
    tables = {
        "the environment's rewards are": rollout.rewards, "log-probabilities are": rollout.log_probs,
        "values are": rollout.values, "the reference's log-probabilities are": rollout.reference_log_probs,
        "the reference's own log-probabilities are": rollout.own_reference_log_probs,
        "advantages are": rollout.advantages, "returns are": rollout.returns,
    }  # fmt: skip
    check_finite(tables, where)


def check_finite(numbers: Mapping[str, Tensor], where: str) -> None:
    """Refuse NaN and infinity.

    Args:
        numbers: tensors of any shape ``[...]``, by their names in the message.
        where: the place in training, for the message.

    Raises:
        NotFiniteError: names the first tensor that has one, and the place.
    """
    finite = read_once({name: torch.isfinite(tensor).all() for name, tensor in numbers.items()})
    for name, tensor in numbers.items():
        if not finite[name]:
            bad = int((~torch.isfinite(tensor)).sum())
            raise NotFiniteError(
                f"{where}: {name} not finite ({bad} of {tensor.numel()} numbers); the last checkpoint is untouched. Lower "
                "the learning rate, clip the scores (clip_scores), or look at the rewards' scale"
            )
