"""Dense rewards: one value for each token of a response, from the reward to the environment.

Such a reward has the attribute ``per_token = True``. It is called like any other, with the column ``response_ids`` from token
environments (the generated ids, EOS included), and returns for each sample one number for each of these ids. Their sum is
the sample's score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.errors import RewardError
from rlhf_gym.text import shorten

IDS = "response_ids"
"""The column that token environments add for per-token rewards."""

ENDS = "token_ends"
"""The column that they add for rewards of steps: for each token, the characters of the response that are complete with it."""

OWN_TURNS = "own_turns"
"""The column of whole conversations whose turns rewards of tokens score one by one: for each a list of :class:`OwnTurn`."""

CONVERSATION = "conversation"
"""The column that rewards of tokens are given with turns: the number of the conversation that each is of."""

Tokens = tuple[NDArray[np.float64], ...]


@dataclass(frozen=True)
class OwnTurn:
    """One of the policy's turns in a conversation, as a response to what came before it.

    Attributes:
        prompt: what came before it, as a transcript.
        response: the turn; a :class:`~rlhf_gym.lm.response_text.GeneratedText` where its tokens are known.
        messages: what came before it.
    """

    prompt: str
    response: str
    messages: list[dict[str, Any]]


def wants_token_ids(reward: object, attribute: str = "per_token") -> bool:
    """True for a per-token reward, and for a reward made of one.

    Args:
        reward: any reward.
        attribute: ``"per_step"`` asks the same of rewards of steps, which need :data:`ENDS`, too.
    """
    if getattr(reward, attribute, False):
        return True
    inner = [reward.func] if isinstance(reward, partial) else [getattr(reward, "reward", None)]
    return any(wants_token_ids(part, attribute) for part in (*inner, *getattr(reward, "parts", ())) if part is not None)


def checked_tokens(
    result: Any,
    name: str,
    prompts: Sequence[str],
    responses: Sequence[str],
    ids: Sequence[Sequence[Any]] | None,
    unit: str = "token",
) -> Tokens:
    """Turn what a per-token reward returned into ``n`` arrays, float64 ``[length]``.

    Args:
        result: ``n`` sequences of numbers.
        name: the reward's name, for the message.
        prompts: the ``n`` prompts.
        responses: the ``n`` responses.
        ids: the responses' token ids, or steps; None if unknown: lengths are not checked then.
        unit: ``"token"`` or ``"step"``, for the message.

    Raises:
        RewardError: it is not one finite number a token; the message names the first sample and token that is wrong.
    """
    n = len(prompts)
    if isinstance(result, str | bytes) or not hasattr(result, "__len__") or len(result) != n:
        got = f"{len(result)} rows" if hasattr(result, "__len__") else type(result).__name__
        raise RewardError(f"per-{unit} reward {name!r} returned {got} for {n} samples; expected one sequence a sample")
    out = []
    for i, row in enumerate(result):
        where = f"sample {i}. Prompt: {shorten(prompts[i])}; response: {shorten(responses[i])}"
        try:
            values = np.asarray(row.detach().cpu() if hasattr(row, "detach") else row, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"per-{unit} reward {name!r} gave {row!r:.80}, expected one number a {unit}, for {where}"
            ) from error
        length = None if ids is None else len(ids[i])
        if values.ndim != 1 or (length is not None and len(values) != length):
            raise RewardError(
                f"per-{unit} reward {name!r} gave values of shape {values.shape}, expected "
                f"({f'{unit}s' if length is None else length},), for {where}"
            )
        if not np.isfinite(values).all():
            place = int(np.argmin(np.isfinite(values)))
            raise RewardError(
                f"per-{unit} reward {name!r} gave {values[place]} for {unit} {place}, expected finite numbers, of {where}"
            )
        out.append(values)
    return tuple(out)


def weighted_sum(parts: Sequence[tuple[float, NDArray[np.float64], Tokens | None]]) -> Tokens | None:
    """The token values of a weighted sum; a part without token values is paid with the last token.

    Args:
        parts: for each its weight, its scores, float64 ``[n]``, and its token values, ``n`` of float64 ``[length]``, or None.

    Returns:
        ``n`` of float64 ``[length]``; None if no part has token values.
    """
    lengths = next(([len(row) for row in tokens] for _, _, tokens in parts if tokens is not None), None)
    if lengths is None:
        return None
    out = tuple(np.zeros(length) for length in lengths)
    for weight, values, tokens in parts:
        for i, row in enumerate(out):
            if tokens is not None:
                row += weight * tokens[i]
            elif len(row):
                row[-1] += weight * values[i]
    return out
