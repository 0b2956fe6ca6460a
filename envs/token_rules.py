"""What an agent may ask of a token environment, however it is wrapped, and how it collects whole episodes there.

An environment with an attribute ``token_rules`` (``env.get_attr("token_rules")`` looks through every wrapper) promises:

- An action of :data:`WAIT` leaves a slot as it is.
- ``reset(options=ROUND)`` begins a round, one episode in every slot. A slot keeps an episode that has no token of its response
  yet, so that no prompt is drawn and left out. An environment that scores several slots with one call scores a round of an
  adaptive reward with one call, when the last episode has ended; until then ``info["waits_for_score"]`` is True where one has.
- Where it has an attribute ``unbegun_prompt`` (the ids of the prompt of an episode that has no token of its response yet, else
  None), a round may go without that reset if some wrapper refuses resets before an episode's end.
- A slot draws one prompt an episode from random numbers of its own: slots with the same seed get the same prompts. With
  ``prompt_order="epochs"`` slots of one seed share epochs, in which every prompt comes once: ``share_prompts(parts, of)`` says
  which part each slot gets from the next seed on, and slots with the same seed and part get the same prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

WAIT = -(2**31)
"""The action that leaves a slot as it is; neither an id nor the -1 of a mistake."""

ROUND: Mapping[str, Any] = {"begin_round": True}
"""The options of a reset that begins a round."""

PromptOrder = Literal["random", "epochs", "success_rate", "advantage", "age", "difficulty"]
"""``"random"`` draws with replacement; in ``"epochs"`` all prompts come, in random order, before one comes again.

The others draw by weights that change with training: see :class:`~rlhf_gym.envs.prompt_weights.WeightedDraws`, and of
``"difficulty"`` :class:`~rlhf_gym.envs.prompt_weights.LevelDraws`.
"""

WEIGHTED = ("success_rate", "advantage", "age", "difficulty")
"""The orders that draw by weights."""

WAITS_FOR_SCORE = "waits_for_score"


@dataclass(frozen=True)
class TokenRules:
    """The fixed rules of a task's episodes.

    Attributes:
        eos_id: the id that ends a response.
        pad_id: the id that fills unused places.
        suppress_tokens: ids that are never allowed.
        min_new_tokens: EOS is not allowed before this many tokens.
        max_new_tokens: the length limit.
        stop: texts that end a response.
        more_eos_ids: further ids that end a response.
        infos: what infos hold, ``"texts"`` or ``"numbers"``.
        prompt_order: see :data:`PromptOrder`.
    """

    eos_id: int
    pad_id: int
    suppress_tokens: tuple[int, ...]
    min_new_tokens: int
    max_new_tokens: int
    stop: tuple[str, ...]
    more_eos_ids: tuple[int, ...]
    infos: str
    prompt_order: PromptOrder = "epochs"


def begins_round(options: Mapping[str, Any] | None) -> bool:
    """True if a reset with these options begins a round."""
    return bool((options or {}).get("begin_round"))
