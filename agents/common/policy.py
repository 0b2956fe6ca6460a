"""A language model as a stable-baselines3 policy: its next-token distribution acts, a head estimates values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from rlhf_gym.agents.common.value_head import ValueHead, value_trunk
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.decoding import CachedDecoder
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import masked_logits, token_log_probs
from rlhf_gym.lm.sampling import Limits, Sampling, behaviour_log_probs, check_drawn, draw, sample_tokens
from rlhf_gym.reward_model import RewardModel

Rows = list[list[int]]
Allowed = Callable[[Rows, Tensor, Tensor | None], Tensor]
"""The ids of ``n`` states, int64 ``[n]`` response tokens in each, and bool ``[n, V]``, the tokens that are possible (None:
all), to bool ``[n, V]``: those of them that are allowed next."""
ValueNetwork = Literal["shared", "separate"]


class CachedPredictor:
    """Decodes incrementally for callers that pass whole observations.

    A row that extends the last row in its place by one token is fed that token; any other row starts over. Callers need not
    report resets, which `evaluate_policy` does not always do. When a weight has changed (by training, or by loading
    parameters), all rows start over.

    Args:
        model: the language model.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._decoder = CachedDecoder(model)
        self._rows: list[list[int]] = []
        self._version: tuple[object, ...] = ()

    @torch.no_grad()
    def last_hidden(self, rows: Sequence[list[int]], generated: Sequence[int]) -> Tensor:
        """Hidden state of each row's last token: ``[len(rows), D]``.

        Args:
            rows: ids of each row.
            generated: response tokens in each row.
        """
        version = self._weights_version()
        if len(rows) != len(self._rows) or version != self._version:
            self._decoder, self._rows, self._version = CachedDecoder(self.model), [[] for _ in rows], version
        going = [i for i, row in enumerate(rows) if len(row) > 1 and row[:-1] == self._rows[i]]
        fresh = [i for i in range(len(rows)) if i not in set(going)]
        parts = []
        if going:
            tokens = torch.tensor([rows[i][-1] for i in going], device=self.model.device)
            parts.append(self._decoder.append(going, tokens))  # lets the other rows go
        if fresh:
            parts.append(self._decoder.start(fresh, [rows[i] for i in fresh], [generated[i] for i in fresh]))
        self._rows = [list(row) for row in rows]
        order = torch.tensor(going + fresh, device=self.model.device).argsort()
        return torch.cat(parts)[order]

    def _weights_version(self) -> tuple[object, ...]:
        """Changes whenever a weight is written to in place or moved (torch counts writes to each tensor)."""
        parameters = list(self.model.model.parameters())
        return (self.model.device, parameters[0].dtype, sum(p._version for p in parameters))


class LMPolicy(ActorCriticPolicy):
    """A causal language model with a value function.

    Observations are ``Dict(ids int64 [L], length int64 [1], prompt_length int64 [1])``, actions token ids. Dropout is
    off in every pass, in training too.

    Args:
        observation_space: as above.
        action_space: ``Discrete(V)``.
        model: the language model; trained in place.
        sampling: how tokens are drawn.
        limits: forbidden tokens and the length limit.
        value_network: ``"shared"``: a head on the policy's trunk, so one pass gives logits and value; ``"separate"``: a
            trunk of its own, copied from the policy's, which costs as much again and cannot disturb the policy; None: no
            value function.
        value_start: a reward model, whose trunk a separate value network starts from instead.

    Attributes:
        language_model: the model being trained.
        value_head: maps hidden states to values, or None.
        value_trunk: the value function's own language model, or None where it reads the policy's hidden states.
        allowed_tokens: further masks for :meth:`predict`, or None.

    Raises:
        ConfigError: spaces that do not hold token ids.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        model: LanguageModel,
        sampling: Sampling,
        limits: Limits,
        value_network: ValueNetwork | None = "shared",
        value_start: RewardModel | None = None,
    ) -> None:
        check_spaces(observation_space, action_space)
        # ActorCriticPolicy's own constructor would build a feature extractor and MLPs.
        BasePolicy.__init__(self, observation_space, action_space)
        self.language_model = model
        self.lm = model.model
        self.sampling = sampling
        self.limits = limits
        self.value_head = None if value_network is None else ValueHead(model.hidden_size).to(model.device)
        self.value_trunk: LanguageModel | None = None
        if value_network == "separate":
            self.value_trunk = value_trunk(model, value_start)
            self.value_trunk.product_dtype = model.product_dtype
            self.value_network = self.value_trunk.trunk  # registers its weights; its vocabulary head is not used
        self.allowed_tokens: Allowed | None = None
        self.forget()
        self.train(False)

    def train(self, mode: bool = True) -> LMPolicy:
        """Stay in evaluation mode: with dropout, the ratio of the first minibatch would not be 1."""
        super().train(False)
        return self

    def forget(self) -> None:
        """Drop what :meth:`predict` remembers of earlier observations."""
        self._predictor = CachedPredictor(self.language_model)

    def save(self, path: str) -> None:
        """Refuse stable-baselines3's file, which is a pickle.

        Args:
            path: not used.

        Raises:
            ConfigError: always; it names the ways to save a policy.
        """
        raise ConfigError(
            "a policy has no file of its own (stable-baselines3's is a pickle): agent.save(path) writes all of the agent, and "
            "agent.policy.language_model.save(folder) the model, as transformers reads it"
        )

    def values(self, hidden: Tensor) -> Tensor:
        """float32 ``[n]`` from hidden states ``[n, D]`` of the trunk that the value is read from."""
        assert self.value_head is not None
        values = self.value_head(hidden)
        assert isinstance(values, Tensor)
        return values

    @property
    def values_from_trunk(self) -> bool:
        """True where values are read from the policy's own hidden states, in the pass that generates."""
        return self.value_head is not None and self.value_trunk is None

    @torch.no_grad()
    def state_values(self, rows: Rows, generated: Sequence[int]) -> Tensor:
        """The values of states.

        Args:
            rows: ids of each state, prompt and response.
            generated: response tokens in each row.

        Returns:
            float32 ``[len(rows)]``.
        """
        return self.values(self.value_model.last_states(rows, generated))

    @property
    def value_model(self) -> LanguageModel:
        """The model whose hidden states the value is read from."""
        return self.value_trunk or self.language_model

    @property
    def acting_model(self) -> LanguageModel:
        """The model that responses are drawn from, and that is saved as the policy; of ILQL with its action values."""
        values = None if self.value_head is None else self.value_head.acts_by
        return self.language_model if values is None else self.language_model.with_action_values(values)

    def distribution(
        self, hidden: Tensor, positions: Tensor, allowed: Tensor | None = None, *, model: LanguageModel | None = None
    ) -> Tensor:
        """Log-probabilities ``[n, V]`` that the next token is drawn with, from hidden states ``[n, D]``.

        Args:
            hidden: ``[n, D]``.
            positions: int64 ``[n]``, response tokens before.
            allowed: bool ``[n, V]``, further masks, or None.
            model: its output layer gives the logits; None is the model that the policy acts by.
        """
        logits = masked_logits(model or self.acting_model, hidden, positions, self.limits, allowed)
        return behaviour_log_probs(logits, self.sampling)

    @torch.no_grad()
    def draw(
        self, hidden: Tensor, positions: Sequence[int], uniforms: Sequence[float], greedy: Sequence[bool] = (),
        allowed: Tensor | None = None, *, model: LanguageModel | None = None,
    ) -> tuple[list[int], list[float], list[float]]:  # fmt: skip
        """Draw a token in each of ``n`` states, and read what came of it: the device is waited for once.

        Args:
            hidden: ``[n, D]``.
            positions: response tokens before each.
            uniforms: the noise, in [0, 1).
            greedy: flags, True takes the most probable token; empty draws in every state.
            allowed: bool ``[n, V]``, further masks, or None.
            model: as of :meth:`distribution`.

        Returns:
            The tokens, their log-probabilities, and the states' values, 0 where they are not read from this trunk.

        Raises:
            ModelError: in some state no token can be drawn.
        """
        places, noise = torch.tensor(positions), torch.tensor(uniforms, dtype=torch.float64)
        log_probs = self.distribution(hidden, places.to(hidden.device, non_blocking=True), allowed, model=model)
        tokens, drawn = draw(log_probs, noise.to(hidden.device, non_blocking=True))
        if any(greedy):
            flags = torch.tensor(greedy).to(hidden.device, non_blocking=True)
            tokens = torch.where(flags, log_probs.argmax(-1), tokens)
        chosen = log_probs.gather(-1, tokens[:, None]).squeeze(-1)
        values = self.values(hidden) if self.values_from_trunk else torch.zeros_like(chosen)
        found = torch.stack([tokens.double(), drawn.double(), chosen.double(), values.double()]).tolist()
        check_drawn(all(found[1]))
        return [int(token) for token in found[0]], found[2], found[3]

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """The next token of one observation or of a batch of them.

        Successive calls are decoded incrementally; the observations show which of them start over, so ``state`` and
        ``episode_start`` are not needed. Noise comes from torch's global generator, which training does not use.

        Args:
            observation: one observation, or observations stacked along a first axis.
            state: returned as it is.
            episode_start: ignored.
            deterministic: take the most probable token.
            action_masks: bool ``[n, V]`` or ``[V]``, tokens that may be taken; None: all.

        Returns:
            int64 actions, ``[n]`` or ``[]``, and ``state``.

        Raises:
            ConfigError: this is no observation of a token environment, or masks that do not fit it.
        """
        if isinstance(observation, tuple):
            raise ConfigError(
                "expected an observation, got a tuple: a Gymnasium environment's reset returns (observation, info)"
            )
        if not isinstance(observation, dict) or not {"ids", "length", "prompt_length"} <= observation.keys():
            got = ", ".join(observation) if isinstance(observation, dict) else type(observation).__name__
            raise ConfigError(
                f"expected a dict with ids, length and prompt_length; got {got}: pass a token environment's observations"
            )
        single = np.ndim(observation["ids"]) == 1
        batch = {key: np.atleast_2d(value) for key, value in observation.items()}
        rows, positions = observed_rows(batch, self.language_model)
        with torch.no_grad():
            allowed = self._masks(action_masks, len(rows))
            if self.allowed_tokens is not None:
                allowed = self.allowed_tokens(rows, positions, allowed)
            hidden = self._predictor.last_hidden(rows, positions.tolist())
            actions = self._act(hidden, positions, deterministic, allowed)[0].cpu().numpy()
        return (actions.squeeze(axis=0) if single else actions), state

    def _masks(self, masks: np.ndarray | None, n: int) -> Tensor | None:
        """A caller's action masks as bool ``[n, V]``."""
        if masks is None:
            return None
        given = torch.as_tensor(np.asarray(masks, dtype=np.bool_), device=self.language_model.device)
        shape = (n, self.language_model.vocab_size)
        if given.numel() != n * shape[1]:
            raise ConfigError(f"action_masks must be of shape {list(shape)}, got {list(given.shape)}")
        given = given.view(shape)
        if not given.any(dim=1).all():
            raise ConfigError(
                f"row {int(given.any(dim=1).int().argmin())} of action_masks allows no token; it must allow one"
            )
        return given

    def _act(
        self, hidden: Tensor, positions: Tensor, deterministic: bool, allowed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Next tokens and their log-probabilities, ``[n]`` each."""
        log_probs = self.distribution(hidden, positions, allowed)
        if deterministic:
            tokens = log_probs.argmax(-1)
        else:
            tokens = sample_tokens(log_probs, torch.rand(len(hidden), dtype=torch.float64).to(hidden.device))
        return tokens, log_probs.gather(-1, tokens[:, None]).squeeze(-1)

    # The rest is stable-baselines3's interface for algorithms that know nothing of sequences: every call runs whole prefixes
    # through the model. With it SB3's own PPO can train this policy, for comparison.

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        rows, positions = observed_rows(observation, self.language_model)
        return self._act(self.language_model.last_states(rows, positions.tolist()), positions, deterministic)[0]

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions ``[n]``, values ``[n, 1]`` and log-probabilities ``[n]``.

        Args:
            obs: ``n`` observations.
            deterministic: take the most probable tokens.

        Raises:
            ConfigError: the policy has no value function.
        """
        rows, positions = observed_rows(obs, self.language_model)
        hidden = self.language_model.last_states(rows, positions.tolist())
        tokens, log_probs = self._act(hidden, positions, deterministic)
        return tokens, self._values_of(obs, hidden), log_probs

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values ``[n, 1]``, log-probabilities ``[n]`` and entropies ``[n]`` of given actions.

        Args:
            obs: ``n`` observations.
            actions: int64 ``[n]``, token ids.

        Raises:
            ConfigError: the policy has no value function.
        """
        rows, positions = observed_rows(obs, self.language_model)
        hidden = self.language_model.last_states(rows, positions.tolist())
        log_probs, entropies = token_log_probs(
            self.acting_model, hidden, actions.long().flatten(), positions, self.sampling, self.limits, entropy=True
        )
        return self._values_of(obs, hidden), log_probs, entropies

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """float32 ``[n, 1]``; differentiable.

        Raises:
            ConfigError: the policy has no value function.
        """
        if self.value_head is None:
            raise ConfigError(
                "this policy has no value function: get_distribution(obs) gives the probabilities of tokens; PPO, NLPO, TRPO "
                "and A2C have values, too"
            )
        rows, positions = observed_rows(obs, self.language_model)
        return self.values(self.value_model.last_states(rows, positions.tolist()))[:, None]

    def _values_of(self, obs: PyTorchObs, hidden: Tensor) -> Tensor:
        """Values, from hidden states of the policy's trunk that are at hand where it is the value's trunk too."""
        return self.values(hidden)[:, None] if self.values_from_trunk else self.predict_values(obs)

    def get_distribution(self, obs: PyTorchObs) -> CategoricalDistribution:
        """The next token's distribution as SB3 wraps it."""
        rows, positions = observed_rows(obs, self.language_model)
        log_probs = self.distribution(self.language_model.last_states(rows, positions.tolist()), positions)
        return CategoricalDistribution(log_probs.shape[-1]).proba_distribution(log_probs)


def observed_rows(observation: Any, model: LanguageModel) -> tuple[Rows, Tensor]:
    """The ids of batched observations (arrays or tensors) as lists, and the number of response tokens in each (int64 ``[n]``).

    Args:
        observation: arrays or tensors by name, batched.
        model: the policy's; its device is that of the numbers.

    Raises:
        ConfigError: they are no whole numbers, or no ids of the model.
    """
    for key in ("ids", "length", "prompt_length"):
        if (kind := torch.as_tensor(observation[key]).dtype).is_floating_point:
            raise ConfigError(
                "observations hold the ids of tokens, which are integers; their "
                f"{key!r} came as {str(kind).removeprefix('torch.')}: pass them as the environment gives them (VecNormalize: "
                "norm_obs=False)"
            )
    lengths = torch.as_tensor(observation["length"]).flatten().long()
    starts = torch.as_tensor(observation["prompt_length"]).flatten().long()
    ids = torch.as_tensor(observation["ids"]).long()
    own = torch.arange(ids.shape[1], device=ids.device) < lengths.to(ids.device)[:, None]
    wrong = ids[own & ((ids < 0) | (ids >= model.vocab_size))]
    rows = [row[:length] for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)]
    if len(wrong) or not all(rows):
        got = f"the id {int(wrong[0])}" if len(wrong) else "a row without a token"
        raise ConfigError(
            f"expected rows of ids in 0..{model.vocab_size - 1} (the logits of {model.name!r}), got {got}: pass observations "
            "of an environment with the policy's tokenizer"
        )
    return rows, (lengths - starts).to(model.device)


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> tuple[int, int]:
    """The longest observation and the number of actions of a token environment.

    Args:
        observation_space: of the environment.
        action_space: of the environment.

    Raises:
        ConfigError: the spaces are not those of a token environment.
    """
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
    names = ("ids", "length", "prompt_length")
    sizes = [parts[name].shape or () for name in names if name in parts]
    fits = len(sizes) == len(names) and len(sizes[0]) == 1
    if fits and sizes[1:] != [(1,), (1,)]:
        raise ConfigError(
            f"a wrapper changes the observations: length and prompt_length must have the shape (1,), got {sizes[1]} and "
            f"{sizes[2]}; leave out VecFrameStack and its like: an observation holds all tokens so far"
        )
    if not fits or not isinstance(action_space, spaces.Discrete):
        texts = isinstance(observation_space, spaces.Text) and isinstance(action_space, spaces.Text)
        whole = isinstance(action_space, spaces.Text | spaces.MultiDiscrete)
        advice = (
            "it talks in texts: take wrap_text_env(env, n, tokenizer=...), or "
            if texts
            else "its actions are whole responses: take the token level of its task, "
            if whole
            else "take "
        )
        raise ConfigError(
            "agents learn token by token, in observations Dict(ids [L], length [1], prompt_length [1]) and actions "
            f"Discrete(vocabulary); got observations {_short(observation_space)} and actions {_short(action_space)}: {advice}"
            "rlhf_gym/NAME-v0, TokenEnv(task) or make_sb3_env(n, task=task)"
        )
    shape = parts["ids"].shape
    assert shape is not None
    return int(shape[0]), int(action_space.n)


def _short(space: spaces.Space[Any]) -> str:
    """A space in a few words."""
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
