"""Text generation as a natively batched `gymnasium.vector.VectorEnv`: one NumPy step for all environments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from rlhf_gym.envs import rendering
from rlhf_gym.envs.episodes import Episodes, Infos
from rlhf_gym.envs.masks import TokenMask
from rlhf_gym.envs.native_vector_env import NativeVectorEnv
from rlhf_gym.envs.token_env import as_token_ids
from rlhf_gym.envs.token_rows import Ids, Mask, Slots
from rlhf_gym.envs.token_rules import WAIT, WAITS_FOR_SCORE, PromptOrder, TokenRules, begins_round
from rlhf_gym.envs.vector_api import (
    check_num_envs,
    note_seed,
    reset_mask,
    stack_infos,
    stack_observations,
)
from rlhf_gym.lm.tokenizer import AnyTokenizer
from rlhf_gym.rewards.adaptive import stateful_parts
from rlhf_gym.tasks import Task

if TYPE_CHECKING:
    from rlhf_gym.lm.language_model import LanguageModel

Floats = NDArray[np.float64]
_OF_STEPS = ("final_obs", "final_info", WAITS_FOR_SCORE)  # infos that are not about an episode


class TokenVectorEnv(NativeVectorEnv[dict[str, Ids], Ids]):
    """Many :class:`~rlhf_gym.envs.token_env.TokenEnv` in one, step for step the same for the same seeds and actions.

    All episodes that end in the same step are scored by one call of the reward. A seed of ``s`` gives slot ``i`` the stream
    ``SeedSequence((s, i))``; a list gives each slot what a single environment would have with that seed.

    Args:
        num_envs: ``N``.
        task: a task or the name of one.
        tokenizer: a tokenizer or a model's name; None takes the task's own, or else the embedded model's.
        reward: replaces the task's reward.
        task_options: options of a task given by name.
        max_prompt_tokens: refuse prompts longer than this; None takes the task's longest.
        mask: the tokens that :meth:`action_masks` allows; see :class:`~rlhf_gym.envs.masks.TokenMask`.
        infos: ``"texts"``, or ``"numbers"`` for clients that keep infos in arrays; see :data:`~rlhf_gym.envs.episodes.Infos`.
        prompt_order: in ``"epochs"`` all prompts come, in random order, before one comes again, for all slots together: see
            :class:`~rlhf_gym.envs.prompts.EpochDraws`; ``"random"`` draws them with replacement; ``"success_rate"``,
            ``"advantage"`` and ``"age"`` draw by weights: see :class:`~rlhf_gym.envs.prompt_weights.WeightedDraws`;
            ``"difficulty"`` begins with the easiest: see :class:`~rlhf_gym.envs.prompt_weights.LevelDraws`.
        difficulty_every: with ``prompt_order="difficulty"``: iterations of an agent after which the next difficulty joins;
            None: once the hardest one so far is solved.
        autoreset_mode: ``next_step`` (the step after the end ignores the action and returns the new episode's first
            observation), ``same_step`` (the ending step returns it, with ``final_obs`` and ``final_info``) or ``disabled``
            (``reset(options={"reset_mask": ...})``).
        max_episode_steps: a time limit: episodes are truncated, unscored, after as many steps.
        copy_observations: False returns read-only views of the environment's own arrays, which change with the next step:
            for loops that use up each observation before they step again. Saves ``N * L * 8`` bytes of copying a step.
        render_mode: ``"ansi"``, ``"human"`` or ``"rgb_array"``, of every slot.
        render_model: a language model, or its name, by whose probabilities rendered tokens are coloured.

    Raises:
        TaskError, ConfigError: the task, the tokenizer or the mask cannot be used, with the reason.
        ValueError: ``num_envs`` below 1, or an unknown autoreset mode.
    """

    def __init__(
        self,
        num_envs: int = 1,
        task: Task | str = "sentiment",
        tokenizer: AnyTokenizer | str | None = None,
        *,
        reward: Callable[..., Any] | None = None,
        task_options: dict[str, Any] | None = None,
        max_prompt_tokens: int | None = None,
        mask: TokenMask | Mapping[str, Any] | None = None,
        infos: Infos = "texts",
        prompt_order: PromptOrder = "epochs",
        difficulty_every: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        copy_observations: bool = True,
        render_mode: str | None = None,
        render_model: LanguageModel | str | None = None,
    ) -> None:
        check_num_envs(num_envs)
        self.episodes = Episodes(
            num_envs, task, tokenizer, reward, task_options, max_prompt_tokens, mask, infos, prompt_order,
            difficulty_every,
        )  # fmt: skip
        super().__init__(
            num_envs, *self.episodes.spaces(), autoreset_mode, max_episode_steps=max_episode_steps,
            render_mode=render_mode, render_fps=10,
        )  # fmt: skip
        self.copy_observations = copy_observations
        self._painter = rendering.Painter(render_model)
        self._ended: Mask = np.zeros(num_envs, dtype=np.bool_)
        self._any_ended = False
        # In a round of an adaptive reward, the slots whose episode has ended and waits to be scored with the others.
        self._held: Mask | None = None

    @property
    def token_rules(self) -> TokenRules:
        """The fixed rules of the episodes, for agents."""
        return self.episodes.rules

    def share_prompts(self, parts: Sequence[int], of: int) -> None:
        """With ``prompt_order="epochs"``, say which part of each epoch a slot gets from the next seed on.

        Args:
            parts: the part of each slot, from 0.
            of: the number of parts.
        """
        self.episodes.share_prompts(parts, of)

    def note_outcomes(
        self, prompts: Sequence[Sequence[int]], scores: Sequence[float], advantages: Sequence[float]
    ) -> None:
        """Take in how responses have done, where prompts are drawn by weights; agents call it after every iteration.

        Args:
            prompts: ids of each response's prompt; those of no prompt of the task do not count.
            scores: of each response.
            advantages: the mean size of each response's advantages.

        Raises:
            ConfigError: the scores are not what ``prompt_order`` takes.
        """
        self.episodes.note_outcomes(prompts, scores, advantages)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Ids], dict[str, Any]]:
        """Start episodes in all slots, or in those where ``options["reset_mask"]`` is True.

        Args:
            seed: ``s`` gives slot ``i`` the stream ``SeedSequence((s, i))``; a list gives each slot what a single environment
                would have with that seed; None goes on with the random numbers there are.
            options: ``reset_mask``, bool ``[N]``; :data:`~rlhf_gym.envs.token_rules.ROUND` begins a round.

        Raises:
            ValueError: a list that has not one seed a slot, or a mask of another shape.
        """
        mask = reset_mask(options, self.num_envs)
        self._held = None
        if begins_round(options):
            if seed is None:
                mask &= ~self.episodes.unbegun
            if self.max_episode_steps is None and stateful_parts(self.episodes.reward):
                self._held = np.zeros(self.num_envs, dtype=np.bool_)
        note_seed(self, seed)
        self.episodes.draws.seed(seed, mask)
        self._begin(np.flatnonzero(mask))
        self._ended = self._ended & ~mask
        self._any_ended = bool(self._ended.any())
        return self._observe(), self._with_masks({}, mask)

    def step(self, actions: Ids) -> tuple[dict[str, Ids], Floats, Mask, Mask, dict[str, Any]]:
        """Append one token in every slot.

        Args:
            actions: int64 ``[N]``; :data:`~rlhf_gym.envs.token_rules.WAIT` leaves a slot as it is, not in next-step mode.

        Raises:
            ResetNeeded: a slot has no running episode.
            InvalidAction: an action is not an id of the vocabulary, or outside a strict mask.
            ValueError: a slot is to wait in next-step mode.
        """
        actions = as_token_ids(actions, (self.num_envs,))
        stepped = actions != WAIT
        waits = np.count_nonzero(stepped) < self.num_envs
        if waits and self.autoreset_mode == AutoresetMode.NEXT_STEP:
            raise ValueError(
                "waiting is for same-step and disabled mode; in next-step mode no slot can be left as it is"
            )
        restarted: Slots | None = None
        if self._any_ended and self.autoreset_mode == AutoresetMode.NEXT_STEP:
            restarted = np.flatnonzero(self._ended)
        slots = np.flatnonzero(stepped) if waits else None
        self.episodes.check_actions(actions, slots, restarted)
        if restarted is not None:
            self._begin(restarted)
        ended = self.episodes.append(actions, slots, restarted)
        rewards = np.zeros(self.num_envs)
        terminations = np.zeros(self.num_envs, dtype=np.bool_)
        infos: dict[str, Any] = {}
        if self._held is not None and len(ended):
            ended, infos = self._hold(ended, self.num_envs if slots is None else len(slots))
        if len(ended):
            terminations[ended] = True
            scored, columns = self.episodes.score_columns(ended)
            rewards[ended] = scored.values
            infos = stack_infos(columns, ended, self.num_envs)
            if self.render_mode is not None:
                for slot, reward in zip(ended.tolist(), scored.values.tolist(), strict=True):
                    self._painter.note(slot, reward)
        truncations = self._truncate(slots, restarted)
        self._any_ended = len(ended) > 0 or (self.max_episode_steps is not None and bool(truncations.any()))
        if self._any_ended:
            self._ended = terminations | truncations
        elif restarted is not None:
            self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        if self.render_mode == "human":
            self.render()
        if self._any_ended and self.autoreset_mode == AutoresetMode.SAME_STEP:
            infos = self._restart(infos)
        return self._observe(), rewards, terminations, truncations, self._with_masks(infos, None)

    def _hold(self, ended: Slots, stepped: int) -> tuple[Slots, dict[str, Any]]:
        """Hold back episodes that have ended until no other goes on; returns those to score now, and infos of the others.

        Args:
            ended: int ``[n]``, the slots whose episode has just ended.
            stepped: the number of slots that were stepped.
        """
        assert self._held is not None
        self._held[ended] = True
        held = np.flatnonzero(self._held)
        if len(ended) < stepped:
            return held[:0], stack_infos({WAITS_FOR_SCORE: self._held[held]}, held, self.num_envs)
        self._held = None
        return held, {}

    def _truncate(self, slots: Slots | None, restarted: Slots | None) -> Mask:
        """Time limit: slots with ``max_episode_steps`` response tokens, terminated or not, as TimeLimit has it."""
        truncations = np.zeros(self.num_envs, dtype=np.bool_)
        if self.max_episode_steps is not None:
            stepped = slice(None) if slots is None else slots
            generated = self.episodes.length[stepped] - self.episodes.prompt_length[stepped]
            truncations[stepped] = generated >= self.max_episode_steps
            if restarted is not None:
                truncations[restarted] = False
            self.episodes.running[truncations] = False
        return truncations

    def _restart(self, infos: dict[str, Any]) -> dict[str, Any]:
        """Same-step autoreset: keep the final observations and infos, start the next episodes."""
        ended = np.flatnonzero(self._ended)
        final = {
            "final_obs": stack_observations(self.episodes.observe(ended), ended, self.num_envs),
            "_final_obs": self._ended.copy(),
            "final_info": self._with_masks(infos, self._ended),
            "_final_info": self._ended.copy(),
        }
        self._begin(ended)
        return final

    def _begin(self, slots: Slots) -> None:
        """Start the next episodes of these slots."""
        self.episodes.begin_all(slots, self.episodes.draws.take(slots))

    def _observe(self) -> dict[str, Ids]:
        return self.episodes.observe() if self.copy_observations else self.episodes.look()

    def _with_masks(self, infos: dict[str, Any], slots: Mask | None) -> dict[str, Any]:
        """Infos with the numbers and the masks of these slots (None: of all), if ``infos`` and ``mask`` ask for them."""
        if self.episodes.infos == "numbers":
            chosen = np.arange(self.num_envs) if slots is None else np.flatnonzero(slots)
            kept = {key: value for key, value in infos.items() if key.lstrip("_") in _OF_STEPS}
            infos = kept | stack_infos(self.episodes.numbers(chosen), chosen, self.num_envs)
        if self.episodes.masks.options.in_info:
            present = np.ones(self.num_envs, dtype=np.bool_) if slots is None else slots.copy()
            infos["action_mask"] = self.action_masks().astype(np.int8) * present[:, None].astype(np.int8)
            infos["_action_mask"] = present
        return infos

    def state(self) -> dict[str, Any]:
        """The state that a checkpoint keeps, as JSON values: random numbers, running episodes, an adaptive reward's state."""
        return {**self.episodes.draws_state(), **self.episodes.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a :meth:`state`, taken from an environment of the same task and number of slots."""
        self.reset()
        self.episodes.restore_draws(state)
        self.episodes.restore(state)

    def action_masks(self) -> Mask:
        """bool ``[N, V]``, True where a token is allowed now."""
        return self.episodes.action_masks()

    def render(self) -> tuple[Any, ...] | None:
        """Every slot's episode so far: texts (``ansi``), frames (``rgb_array``), or None and they are printed (``human``)."""
        if self.render_mode is None or not self.episodes.length.all():
            return None
        slots = range(self.num_envs)
        if self.render_mode == "ansi":
            return tuple(rendering.as_text(self.episodes, i) for i in slots)
        if self.render_mode == "rgb_array":
            return tuple(rendering.as_frame(self.episodes, i, self._painter) for i in slots)
        for i in slots:
            rendering.print_rich(self.episodes, i, self._painter)
        return None
