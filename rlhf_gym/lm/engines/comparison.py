"""Before anything is learned: do engine and learner give the same tokens the same log-probabilities?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from rlhf_gym.errors import EngineError
from rlhf_gym.lm.engines.engine import Engine, ResponseSettings
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import response_log_probs
from rlhf_gym.lm.sampling import Limits, Sampling

PROMPTS = 4
TOKENS = 16
NOISE = 1e-3
"""Mean difference of log-probabilities, in nats, that needs no explanation."""


def compare(
    engine: Engine, model: LanguageModel, prompts: Sequence[Sequence[int]], settings: ResponseSettings, *, most: float
) -> float:
    """Have the engine answer a few prompts, and refuse it where the learner gives its tokens other log-probabilities.

    Another model, another tokenizer, weights that did not arrive, a temperature that is ignored: all show here.

    Args:
        engine: the engine, with the model's weights.
        model: the model that learns.
        prompts: ids of prompts, of which the first few are used.
        settings: what responses are drawn with.
        most: largest mean difference, in nats per token.

    Returns:
        The mean absolute difference of the log-probabilities, in nats per token.

    Raises:
        EngineError: they differ.
    """
    limits = settings.limits
    length = min(limits.max_new_tokens, TOKENS)
    short = replace(limits, max_new_tokens=length, min_new_tokens=min(limits.min_new_tokens, length))
    chosen = prompts[:PROMPTS]
    responses = engine.generate(chosen, replace(settings, limits=short), seed=0, episodes=range(len(chosen)))
    given = torch.tensor([value for response in responses for value in response.log_probs])
    ids = [response.ids for response in responses]

    def distance(sampling: Sampling, limits: Limits) -> float:
        own = torch.cat(response_log_probs(model, chosen, ids, sampling, limits))
        return float((own - given).abs().mean())

    difference = distance(settings.sampling, short)
    plain = distance(Sampling(), Limits(short.eos_id, max_new_tokens=length, more_eos_ids=short.more_eos_ids))
    if difference > NOISE and plain < difference / 2:
        raise EngineError(
            f"engine {engine.name} gives log-probabilities before temperature, top-k, top-p and forbidden tokens: start its "
            "server with --logprobs-mode processed_logprobs"
        )
    if difference > most:
        raise EngineError(
            f"engine {engine.name} is not the model that learns: its tokens' log-probabilities differ by {difference:.3g} nats "
            f"on average (engine_tolerance is {most:g}). Serve {model.name!r} there, with its tokenizer and near its precision"
        )
    return difference
