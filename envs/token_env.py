"""Text generation as a `gymnasium.Env`: an action is a token id."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rlhf_gym.envs import rendering
from rlhf_gym.envs.episodes import Episodes, Infos
from rlhf_gym.envs.masks import TokenMask
from rlhf_gym.envs.picture import Frame
from rlhf_gym.envs.prompts import slot_generator
from rlhf_gym.envs.token_rows import Ids, Mask
from rlhf_gym.envs.token_rules import WAIT, WEIGHTED, PromptOrder, TokenRules, begins_round
from rlhf_gym.envs.vector_api import row_of
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.tokenizer import AnyTokenizer
from rlhf_gym.tasks import Task

if TYPE_CHECKING:
    from rlhf_gym.lm.language_model import LanguageModel


class TokenEnv(gym.Env[Any, Any]):
    """One prompt, one response, a token a step.

    Observation: ``Dict(ids int64 [L], length int64 [1], prompt_length int64 [1])``; the ids are the prompt, then the response
    so far, then padding. Action: ``Discrete(vocab_size)``, the next id. The reward is 0 until the episode ends: by EOS, by one
    of the task's stop sequences, or at its length limit. All three *terminate* it, since the reward scores the response as it
    then is; *truncation* comes only from a time limit around the environment and is not scored.

    Args:
        task: a :class:`~rlhf_gym.tasks.Task` or the name of one.
        tokenizer: a :class:`~rlhf_gym.lm.tokenizer.Tokenizer` or a model's name; None takes the task's own, or else
            the embedded model's.
        reward: replaces the task's reward.
        task_options: options of a task given by name, e.g. ``{"max_new_tokens": 24}``.
        max_prompt_tokens: refuse prompts longer than this; None takes the task's longest.
        mask: the tokens that :meth:`action_masks` allows: a :class:`~rlhf_gym.envs.masks.TokenMask` or a mapping of its fields,
            e.g. ``{"pattern": "[0-9]+"}``.
        infos: ``"texts"``, or ``"numbers"`` for clients that keep infos in arrays; see :data:`~rlhf_gym.envs.episodes.Infos`.
        prompt_order: in ``"epochs"`` all prompts come, in random order, before one comes again; ``"random"`` draws
            them with replacement.
        render_mode: ``"ansi"``, ``"human"`` or ``"rgb_array"``.
        render_model: a language model, or its name, by whose probabilities rendered tokens are coloured.

    Raises:
        TaskError, ConfigError: the task, the tokenizer or the mask cannot be used, with the reason.
    """

    metadata = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": list(rendering.RENDER_MODES),
        "render_fps": 10,
    }

    def __init__(
        self,
        task: Task | str = "sentiment",
        tokenizer: AnyTokenizer | str | None = None,
        *,
        reward: Callable[..., Any] | None = None,
        task_options: dict[str, Any] | None = None,
        max_prompt_tokens: int | None = None,
        mask: TokenMask | Mapping[str, Any] | None = None,
        infos: Infos = "texts",
        prompt_order: PromptOrder = "epochs",
        render_mode: str | None = None,
        render_model: LanguageModel | str | None = None,
    ) -> None:
        if prompt_order in WEIGHTED:
            raise ConfigError(
                f"prompt_order={prompt_order!r} weighs the prompts of all slots together: make them in one environment, "
                "make_sb3_env(n, ...) or TokenVectorEnv(n, ...)"
            )
        self.episodes = Episodes(1, task, tokenizer, reward, task_options, max_prompt_tokens, mask, infos, prompt_order)
        self.observation_space, self.action_space = self.episodes.spaces()
        rendering.check_render_mode(render_mode)
        self.render_mode = render_mode
        self._painter = rendering.Painter(render_model)
        self._waited = False

    @property
    def token_rules(self) -> TokenRules:
        """The fixed rules of the episodes, for agents."""
        return self.episodes.rules

    @property
    def unbegun_prompt(self) -> list[int] | None:
        """The prompt's ids where the episode has no token of its response yet; else None."""
        return self.episodes.ids[0, : self.episodes.length[0]].tolist() if self.episodes.unbegun[0] else None

    def share_prompts(self, parts: Sequence[int], of: int) -> None:
        """With ``prompt_order="epochs"``, say which part of each epoch a slot gets from the next seed on.

        Args:
            parts: the part of each slot, from 0.
            of: the number of parts.
        """
        self.episodes.share_prompts(parts, of)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Ids], dict[str, Any]]:
        """Draw a prompt and start an episode.

        Args:
            seed: of the prompts from here on; None goes on with the random numbers there are.
            options: :data:`~rlhf_gym.envs.token_rules.ROUND` keeps an episode that has no token of its response yet; so does a
                reset after a step of :data:`~rlhf_gym.envs.token_rules.WAIT` (a time limit counts such steps, too).
        """
        super().reset(seed=seed)
        if seed is not None:
            self._np_random = slot_generator(seed, 0)  # setting `np_random` would forget the seed
        if self._in_epochs:
            self.episodes.draws.seed(seed, np.ones(1, dtype=np.bool_))
        kept = seed is None and (begins_round(options) or self._waited) and self.episodes.unbegun[0]
        if not kept:
            self.episodes.begin(0, self._draw())
        self._waited = False
        if self.render_mode == "human":
            self.render()
        return self.episodes.observe_one(0), self._with_mask({})

    @property
    def _in_epochs(self) -> bool:
        return self.episodes.prompt_order == "epochs"

    def _draw(self) -> int:
        """The number of the next prompt."""
        if self._in_epochs:
            return int(self.episodes.draws.take(np.zeros(1, dtype=np.intp))[0])
        return int(self.np_random.integers(len(self.episodes.prompts)))

    def step(self, action: np.int64 | int) -> tuple[dict[str, Ids], float, bool, bool, dict[str, Any]]:
        """Append one token; :data:`~rlhf_gym.envs.token_rules.WAIT` leaves the episode as it is.

        Raises:
            ResetNeeded: no episode was started, or it has ended.
            InvalidAction: the action is not an id of the vocabulary, or outside a strict mask.
        """
        actions = as_token_ids(action, ()).reshape(1)
        self._waited = bool(actions[0] == WAIT) and bool(self.episodes.running[0])
        if self._waited:
            return self.episodes.observe_one(0), 0.0, False, False, self._with_mask({})
        self.episodes.check_actions(actions)
        reward, info = 0.0, {}
        terminated = len(self.episodes.append(actions)) > 0
        if terminated:
            scored, infos = self.episodes.score([0])
            reward, info = float(scored.values[0]), infos[0]
            self._painter.note(0, reward)
        if self.render_mode == "human":
            self.render()
        return self.episodes.observe_one(0), reward, terminated, False, self._with_mask(info)

    def action_masks(self) -> Mask:
        """bool ``[V]``, True where a token is allowed now (as sb3-contrib's MaskablePPO reads it)."""
        masks: NDArray[np.bool_] = self.episodes.action_masks()[0]
        return masks

    def state(self) -> dict[str, Any]:
        """The state that a checkpoint keeps, as JSON values: random numbers, the episode, an adaptive reward's state."""
        own = self.episodes.draws.states() if self._in_epochs else [self.np_random.bit_generator.state]
        return {"generators": own, **self.episodes.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a :meth:`state`, taken from an environment of the same task."""
        if self._in_epochs:
            self.episodes.draws.restore(state["generators"])
        else:
            self.np_random.bit_generator.state = state["generators"][0]
        self.episodes.restore(state)

    def _with_mask(self, info: dict[str, Any]) -> dict[str, Any]:
        if self.episodes.infos == "numbers":
            info = row_of(self.episodes.numbers(np.zeros(1, dtype=np.intp)), 0)
        if self.episodes.masks.options.in_info:
            info["action_mask"] = self.action_masks().astype(np.int8)
        return info

    def render(self) -> str | Frame | None:
        """The episode so far.

        Returns:
            ``ansi``: one line of text. ``rgb_array``: uint8 ``[240, 640, 3]``. ``human``: None, the line is printed. None
            before the first reset, and without a render mode.
        """
        if self.render_mode is None or not self.episodes.length[0]:
            return None
        if self.render_mode == "ansi":
            return rendering.as_text(self.episodes, 0)
        if self.render_mode == "rgb_array":
            return rendering.as_frame(self.episodes, 0, self._painter)
        rendering.print_rich(self.episodes, 0, self._painter)
        return None


def as_token_ids(actions: Any, shape: tuple[int, ...]) -> Ids:
    """Actions as int64 of a shape.

    Args:
        actions: as the environment got them.
        shape: ``(N,)``, or ``()`` for one action.

    Raises:
        InvalidAction: the array has another shape, or holds something other than whole numbers.
    """
    given = np.asarray(actions)
    if given.shape != shape:
        expected = f"{shape[0]} token ids" if shape else "one token id"
        raise gym.error.InvalidAction(f"expected {expected}, got an array of shape {given.shape}")
    if given.dtype.kind not in "iu":
        raise gym.error.InvalidAction(f"a token id is a whole number, got {given.dtype} {given.ravel()[:1].tolist()}")
    return given.astype(np.int64, copy=False)
