"""A language model as a stable-baselines3 policy: its next-token distribution acts, a head on its hidden states values."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from rlhf_gym.agents.log_probs import masked_logits, token_log_probs
from rlhf_gym.agents.predictor import CachedPredictor
from rlhf_gym.agents.settings import Schedule
from rlhf_gym.agents.value_head import ValueHead, ValueKind, last_hidden, value_trunk
from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.language_model import LanguageModel
from rlhf_gym.sampling import Limits, Sampling, behaviour_log_probs, sample_tokens
from rlhf_gym.sequences import SequenceBatch, response_hidden, response_positions

Rows = list[list[int]]


class Evaluation(NamedTuple):
    """What a policy says of response tokens, all float32 ``[N]`` in the order of the batch's ``response_mask``."""

    log_probs: Tensor
    values: Tensor
    entropies: Tensor | None


class LMPolicy(ActorCriticPolicy):
    """A causal language model with a value function.

    Observations are ``Dict(ids int64 [L], length int64 [1], prompt_length int64 [1])``, actions token ids. Dropout is off in
    every pass, in training too.

    Args:
        observation_space: as above.
        action_space: ``Discrete(n)``; ids from ``n`` on are never written.
        lr_schedule: learning rate from the progress remaining.
        use_sde: not for tokens.
        model: name or path of the language model, see :meth:`LanguageModel.load`.
        language_model: a loaded one instead; it is trained in place.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        revision: commit, tag or branch on the hub.
        trust_remote_code: let the hub's repository run its own code here.
        value_network: ``"shared"``: a head on the policy's trunk, so one pass gives logits and value; ``"separate"``: a
            trunk of its own, copied from the policy's, which costs as much again and cannot disturb the policy.
        value_init_scale: see :class:`~rlhf_gym.agents.value_head.ValueHead`.
        optimizer_class: a torch optimiser.
        optimizer_kwargs: its options; Adam's epsilon is 1e-5 unless given.

    Attributes:
        language_model: the model being trained.
        sampling: how tokens are drawn; set by the algorithm.
        limits: which tokens may be written; set by the algorithm from the environment.

    Raises:
        ConfigError: spaces that do not hold token ids, or an unknown value network.
        ModelError: the model cannot be loaded, or the observations are longer than its context.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        use_sde: bool = False,
        model: str = "embedded",
        language_model: LanguageModel | None = None,
        dtype: str = "float32",
        revision: str | None = None,
        trust_remote_code: bool = False,
        value_network: ValueKind = "shared",
        value_init_scale: float = 0.01,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        capacity, actions = check_spaces(observation_space, action_space)
        if use_sde:
            raise ConfigError("use_sde explores in continuous action spaces; token ids are discrete")
        if value_network not in ("shared", "separate"):
            raise ConfigError(f"value_network must be 'shared' or 'separate', got {value_network!r}")
        if optimizer_kwargs is None:
            optimizer_kwargs = {"eps": 1e-5} if issubclass(optimizer_class, torch.optim.Adam) else {}
        # ActorCriticPolicy's own constructor would build a feature extractor and MLPs.
        BasePolicy.__init__(
            self, observation_space, action_space, optimizer_class=optimizer_class, optimizer_kwargs=optimizer_kwargs
        )
        if language_model is None:
            language_model = LanguageModel.load(
                model, device="cpu", dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
            )
        check_model_fits(language_model, capacity, actions)
        self.language_model = language_model
        self.network = language_model.model
        self.value_head = ValueHead(language_model.hidden_size, value_init_scale).to(language_model.device)
        self._value_model = language_model
        if value_network == "separate":
            self._value_model = value_trunk(language_model)
            self.value_trunk = self._value_model.trunk
        tokenizer = language_model.tokenizer
        self.sampling = Sampling()
        self.limits = Limits(
            tokenizer.eos_id, (tokenizer.pad_id, *range(actions, language_model.vocab_size)), max_tokens=capacity
        )
        self._predictor = CachedPredictor(language_model)
        self.optimizer = optimizer_class(
            [p for p in self.parameters() if p.requires_grad],
            lr=lr_schedule(1),  # type: ignore[call-arg]  # every torch optimiser takes it
            **optimizer_kwargs,
        )
        self.train(False)

    @property
    def shares_trunk(self) -> bool:
        """Whether the value is read from the policy's own hidden states."""
        return self._value_model is self.language_model

    def train(self, mode: bool = True) -> LMPolicy:
        """Never train mode: with dropout, the ratio of the first minibatch would not be 1."""
        super().train(False)
        return self

    def evaluate(self, batch: SequenceBatch, *, allowed: Tensor | None = None, entropy: bool = False) -> Evaluation:
        """Log-probability and value of every response token, in one pass; differentiable.

        Args:
            batch: the sequences.
            allowed: bool ``[N, V]``, the environment's masks at each token, or None.
            entropy: also compute each distribution's entropy.
        """
        hidden = response_hidden(self.language_model, batch)
        tokens = batch.responses[batch.response_mask]
        log_probs, entropies = token_log_probs(
            self.language_model, hidden, tokens, response_positions(batch), self.sampling, self.limits,
            allowed=allowed, entropy=entropy,
        )  # fmt: skip
        before = hidden if self.shares_trunk else response_hidden(self._value_model, batch)
        return Evaluation(log_probs, self.value_head(before), entropies)

    @torch.no_grad()
    def sequence_values(self, batch: SequenceBatch) -> Tensor:
        """float32 ``[N]``, the value before each response token (for a value network of its own)."""
        values = self.value_head(response_hidden(self._value_model, batch))
        assert isinstance(values, Tensor)
        return values

    @torch.no_grad()
    def state_values(self, rows: Rows) -> Tensor:
        """float32 ``[len(rows)]``, the value of having written these ids."""
        values = self.value_head(last_hidden(self._value_model, rows))
        assert isinstance(values, Tensor)
        return values

    def distribution(self, hidden: Tensor, positions: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Log-probabilities ``[n, V]`` that the next token is drawn with, from hidden states ``[n, D]``."""
        return behaviour_log_probs(
            masked_logits(self.language_model, hidden, positions, self.limits, allowed), self.sampling
        )

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """The next token of one observation or of a batch of them.

        Successive calls are decoded incrementally; which observations start over is seen from the observations, so ``state``
        and ``episode_start`` are not needed. Noise comes from torch's global generator, which training does not use.

        Args:
            observation: one observation, or observations stacked along a first axis.
            state: returned as it is.
            episode_start: ignored.
            deterministic: take the most probable token.

        Returns:
            int64 actions, ``[n]`` or a scalar array, and ``state``.
        """
        if not isinstance(observation, dict):
            raise ConfigError(f"expected a dict with ids, length and prompt_length; got {type(observation).__name__}")
        single = np.ndim(observation["ids"]) == 1
        batch = {key: np.atleast_2d(value) for key, value in observation.items()}
        rows, positions = observed_rows(batch, self.language_model.device)
        with torch.no_grad():
            actions = self._act(self._predictor.last_hidden(rows), positions, deterministic)[0].cpu().numpy()
        return (actions[0] if single else actions), state

    def _act(self, hidden: Tensor, positions: Tensor, deterministic: bool) -> tuple[Tensor, Tensor]:
        """Next tokens and their log-probabilities, ``[n]`` each."""
        log_probs = self.distribution(hidden, positions)
        if deterministic:
            tokens = log_probs.argmax(-1)
        else:
            tokens = sample_tokens(log_probs, torch.rand(len(hidden), dtype=torch.float64).to(hidden.device))
        return tokens, log_probs.gather(-1, tokens[:, None]).squeeze(-1)

    # What follows is stable-baselines3's interface for algorithms that know nothing of sequences: every call runs whole
    # prefixes through the model. It lets SB3's own PPO train this policy, for comparison.

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        rows, positions = observed_rows(observation, self.language_model.device)
        return self._act(last_hidden(self.language_model, rows), positions, deterministic)[0]

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values and log-probabilities, ``[n]`` each."""
        rows, positions = observed_rows(obs, self.language_model.device)
        hidden = last_hidden(self.language_model, rows)
        tokens, log_probs = self._act(hidden, positions, deterministic)
        return tokens, self.predict_values(obs), log_probs

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log-probabilities and entropies of given actions, ``[n]`` each."""
        rows, positions = observed_rows(obs, self.language_model.device)
        hidden = last_hidden(self.language_model, rows)
        log_probs, entropies = token_log_probs(
            self.language_model, hidden, actions.long().flatten(), positions, self.sampling, self.limits, entropy=True
        )
        return self.predict_values(obs), log_probs, entropies

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """float32 ``[n]``; differentiable."""
        rows, _ = observed_rows(obs, self.language_model.device)
        values = self.value_head(last_hidden(self._value_model, rows))
        assert isinstance(values, Tensor)
        return values

    def get_distribution(self, obs: PyTorchObs) -> CategoricalDistribution:
        """The next token's distribution as SB3 wraps it."""
        rows, positions = observed_rows(obs, self.language_model.device)
        log_probs = self.distribution(last_hidden(self.language_model, rows), positions)
        return CategoricalDistribution(log_probs.shape[-1]).proba_distribution(log_probs)


def observed_rows(observation: Any, device: torch.device) -> tuple[Rows, Tensor]:
    """The ids of batched observations (arrays or tensors) as lists, and how many response tokens each has (int64 ``[n]``)."""
    lengths = torch.as_tensor(observation["length"]).flatten().long()
    starts = torch.as_tensor(observation["prompt_length"]).flatten().long()
    ids = torch.as_tensor(observation["ids"]).long().tolist()
    rows = [row[:length] for row, length in zip(ids, lengths.tolist(), strict=True)]
    return rows, (lengths - starts).to(device)


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> tuple[int, int]:
    """Longest observation and number of actions of a token environment.

    Raises:
        ConfigError: the spaces are not those of a token environment.
    """
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
    fits = {"ids", "length", "prompt_length"} <= set(parts) and len(parts["ids"].shape or ()) == 1
    if not fits or not isinstance(action_space, spaces.Discrete):
        raise ConfigError(
            "this algorithm learns in token environments: observations Dict(ids [L], length [1], prompt_length [1]) and "
            f"actions Discrete(vocabulary); got {observation_space} and {action_space}"
        )
    shape = parts["ids"].shape
    assert shape is not None
    return int(shape[0]), int(action_space.n)


def check_model_fits(model: LanguageModel, capacity: int, actions: int) -> None:
    """Raise :class:`ModelError` unless a model can read the environment's observations and write its actions."""
    if capacity > model.context_length:
        raise ModelError(
            f"the environment's longest prompt and response have {capacity} tokens together, more than the "
            f"{model.context_length} that {model.name!r} can see: shorten the prompts or max_response_tokens"
        )
    if actions > model.vocab_size:
        raise ModelError(
            f"the environment's tokenizer has {actions} ids, but {model.name!r} has logits for {model.vocab_size}; build "
            "the environment with the model's own tokenizer"
        )
