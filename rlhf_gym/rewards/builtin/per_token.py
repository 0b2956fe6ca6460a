"""A reward model read at every token: each token is paid the change that it makes in the score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf_gym.errors import ConfigError, ModelError, RewardError
from rlhf_gym.lm.tokenizer import encode_conversation, encode_response, end_ids

if TYPE_CHECKING:
    from rlhf_gym.reward_model import RewardModel


class PerToken:
    """A reward model's score (mean 0 and standard deviation 1 as `run` leaves it), paid token by token.

    The head is read after the prompt and after every token, ``v_0 ... v_T``, in one pass. Token ``t`` is paid
    ``v_t - v_{t-1}``, which is shaping by the potential ``v`` (Ng et al. 1999, with a discount of 1); the last one is also paid
    ``v_0``, so that a response's payments add up to its score. A response that the length limit cut has EOS added, whose change
    is the last token's. A conversation's payments add up to the score behind its last turn.

    The head was fitted to whole responses; its values inside a response are as good as it generalises.

    Args:
        model: a reward model, or its folder; it must have the policy's tokenizer, for it reads the policy's own ids.
        options: of ``RewardModel.load``, for a folder.

    Raises:
        ConfigError: the folder holds no reward model of this package.
    """

    per_token = True
    name = "per_token"

    def __init__(self, model: RewardModel | str, **options: Any) -> None:
        from rlhf_gym.reward_model import RewardModel

        try:
            self.model = model if isinstance(model, RewardModel) else RewardModel.load(model, **options)
        except ModelError as error:
            raise ConfigError(f"per_token: {error}") from error

    def __call__(
        self,
        prompts: list[str],
        responses: list[str],
        response_ids: Sequence[Sequence[int]] | None = None,
        messages: Sequence[Any] | None = None,
        conversation: Sequence[int] | None = None,
    ) -> list[list[float]]:
        """Values of each token; without ids, of the tokens that the reward model's tokenizer makes of the response.

        Args:
            prompts: ``n`` prompts.
            responses: ``n`` responses.
            response_ids: their token ids.
            messages: prompts that are conversations.
            conversation: for turns of conversations in their order, the number of the conversation that each is of. What the
                other side's words change in the score is then paid at the end of the turn before them.
        """
        tokenizer = self.model.language_model.tokenizer
        if response_ids is None:
            response_ids = [encode_response(tokenizer, response) or [tokenizer.eos_id] for response in responses]
        told = [None] * len(prompts) if messages is None else messages
        asked = [encode_conversation(tokenizer, *one) for one in zip(prompts, told, responses, strict=True)]
        heads = [self._head(prompt, len(ids)) for prompt, ids in zip(asked, response_ids, strict=True)]
        whole = [[*head, *ids, *self._closing(ids)] for head, ids in zip(heads, response_ids, strict=True)]
        every = self.model.prefix_scores(whole)
        paid = [
            self._paid(values[len(head) - 1 :], len(ids))
            for head, ids, values in zip(heads, response_ids, every, strict=True)
        ]
        for row in range(1, len(paid)):
            if conversation is not None and conversation[row] == conversation[row - 1]:
                begun = every[row][len(heads[row]) - 1]
                paid[row][-1] -= begun
                paid[row - 1][-1] += begun - every[row - 1][-1]  # so all add up to the score behind the last turn
        return paid

    def _head(self, prompt: list[int], length: int) -> list[int]:
        """A prompt's ids, at least one; where prompt, response and EOS exceed the context, it loses its beginning."""
        model = self.model.language_model
        room = model.context_length - length - 1
        if room < 1:
            raise RewardError(
                f"reward 'per_token': a response of {length} tokens leaves no room for a prompt in the reward model's context "
                f"of {model.context_length}; take a shorter length limit"
            )
        return (prompt or [model.tokenizer.eos_id])[-room:]

    def _closing(self, ids: Sequence[int]) -> list[int]:
        ends = end_ids(self.model.language_model.tokenizer)
        return [] if len(ids) and ids[-1] in ends else [ends[0]]

    @staticmethod
    def _paid(values: list[float], length: int) -> list[float]:
        """From ``v_0 ... v_T``, and perhaps that of an added EOS."""
        paid = [values[t + 1] - values[t] for t in range(length)]
        paid[-1] += values[0] + values[-1] - values[length]
        return paid
