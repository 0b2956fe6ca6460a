"""Responses that were given, not generated, as episodes: what SFT and offline preference learning read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_gym.agents.common.rollout import Episode
from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.feedback.exchange.transcripts import transcript
from rlhf_gym.lm.chat_template import Messages, messages_before
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.lm.tokenizer import encode_conversation, encode_response
from rlhf_gym.text import shorten


def is_prompt(prompt: object) -> bool:
    """True for a text, and for chat messages that end with the user's."""
    return isinstance(prompt, str) or messages_before(prompt) is not None


def prompt_text(prompt: str | Messages) -> str:
    """A prompt as one text: chat messages as a transcript, one message as its text."""
    if isinstance(prompt, str):
        return prompt
    return str(prompt[0]["content"]) if len(prompt) == 1 else transcript(prompt)


def place_in_pass(number: int, size: int, seed: int) -> int:
    """The place of what is the ``number``-th to be learned: each once per pass, in an order of the pass's own.

    Args:
        number: counts from 0, over all passes.
        size: of the data.
        seed: of the orders.
    """
    turn, place = divmod(number, size)
    return int(np.random.default_rng(np.random.SeedSequence((seed, 2, turn))).permutation(size)[place])


def given_episode(prompt: str | Messages, response: str, ids: tuple[list[int], list[int]], limits: Limits) -> Episode:
    """A given response as an episode without a reward.

    Args:
        prompt: its prompt.
        response: its text.
        ids: of prompt and response, as :func:`encoded_pairs` gives them.
        limits: say which ids end a response.
    """
    prompt_ids, response_ids = ids
    ended, zeros = response_ids[-1] in limits.eos_ids, [0.0] * len(response_ids)
    info = {
        "prompt": prompt_text(prompt), "response": response, "ended": ended, "response_length": len(response_ids),
    }  # fmt: skip
    return Episode(prompt_ids, response_ids, zeros, zeros, list(zeros), ended, info)


def encoded_pairs(
    data: Sequence[tuple[str | Messages, str]], model: LanguageModel, limits: Limits
) -> list[tuple[list[int], list[int]]]:
    """The ids of each pair's prompt and response, EOS included, cut at the length limit.

    Args:
        data: pairs of texts.
        model: its tokenizer encodes them, and they must fit in its context.
        limits: the environment's.

    Raises:
        ConfigError: a response holds a token that the limits forbid, so that its probability is 0.
        ModelError: a pair does not fit in the model's context.
    """
    out = []
    for number, (prompt, response) in enumerate(data):
        prompt_ids = encode_conversation(
            model.tokenizer, prompt_text(prompt), None if isinstance(prompt, str) else prompt
        )
        ids = [*encode_response(model.tokenizer, response), limits.eos_id][: limits.max_new_tokens]
        try:
            model.check_fits(len(prompt_ids), len(ids))
        except ModelError as error:
            raise ModelError(f"data[{number}]: {error}") from error
        early = [token for token in ids[: limits.min_new_tokens] if token in limits.eos_ids]
        if forbidden := early or [token for token in ids if token in limits.suppress_tokens]:
            rule = (
                f"EOS is not allowed in the first {limits.min_new_tokens}" if early else f"id {forbidden[0]} never is"
            )
            raise ConfigError(
                f"data[{number}] has the response {shorten(response)} of {len(ids)} tokens, which the environment does not "
                f"allow: {rule}. Leave the pair out, or change the environment's limits"
            )
        out.append((prompt_ids, ids))
    return out
