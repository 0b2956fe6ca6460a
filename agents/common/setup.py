"""The parts of an agent, loaded and checked before any work starts: models, and an environment that fits them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from rlhf_gym.agents.common.collect_turns import text_env_inside
from rlhf_gym.agents.common.policy import LMPolicy, check_spaces
from rlhf_gym.agents.common.settings import AgentSettings
from rlhf_gym.agents.common.slots import rules_of
from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora, adapted, begins_as_base, require_peft
from rlhf_gym.lm.networks import checkpoint_layers
from rlhf_gym.lm.precision import product_dtype
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.reward_model import RewardModel

BASE = "base"
"""The name, as a reference, of the model beneath the policy's adapter."""


def sb3_arguments(given: AgentSettings) -> dict[str, Any]:
    """The arguments of stable-baselines3's ``OnPolicyAlgorithm``; neutral values for settings that an agent does not have."""
    neutral = {"gamma": 1.0, "gae_lambda": 1.0, "ent_coef": 0.0, "vf_coef": 0.0}
    return {
        "learning_rate": given.learning_rate, "n_steps": 1, "max_grad_norm": given.max_grad_norm,
        **{name: getattr(given, name, value) for name, value in neutral.items()},
        "use_sde": False, "sde_sample_freq": -1, "stats_window_size": given.stats_window_size,
        "tensorboard_log": given.tensorboard_log, "verbose": given.verbose, "seed": given.seed, "device": "cpu",
    }  # fmt: skip


def num_envs_of(env: GymEnv | str | None) -> int | None:
    """The number of environments in what an agent was given; None where it was given none."""
    return None if env is None else env.num_envs if isinstance(env, VecEnv) else 1


def policy_class(policy: object) -> Any:
    """The policy as stable-baselines3's constructor takes it.

    Raises:
        ConfigError: it is neither ``"LMPolicy"`` nor a subclass of :class:`LMPolicy`.
    """
    if policy == LMPolicy.__name__ or (isinstance(policy, type) and issubclass(policy, LMPolicy)):
        return policy
    raise ConfigError(
        f"policy must be 'LMPolicy' or a subclass of it, got {policy!r}: the policy is a language model, which language_model "
        "names"
    )


def usable_device(device: object) -> str:
    """The device's name; the CPU, with a warning, in the place of a GPU where CUDA does not work."""
    name = str(device)
    if name.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        warnings.warn(f"device {name!r}: there is no CUDA here; the CPU takes its place", stacklevel=3)
        return "cpu"
    return name


def made_env(env: GymEnv | str | None) -> Any:
    """The environment, made where its id is given: stable-baselines3 would ask for a render mode, which no token env has.

    Raises:
        ConfigError: it is neither an environment nor an id, or not one that agents learn in. SB3 stumbles over some spaces.
    """
    made = gym.make(env) if isinstance(env, str) else env
    if made is None:
        return None
    if isinstance(made, gym.vector.VectorEnv):
        raise ConfigError(
            f"env is a gymnasium.vector environment ({type(made.unwrapped).__name__}), agents need a VecEnv: give "
            "make_sb3_env(n, task=...), or VectorVecEnv(env) around one made with autoreset_mode='same_step'"
        )
    if not isinstance(made, VecEnv | gym.Env):
        raise ConfigError(f"env must be a VecEnv, a gymnasium.Env or the id of one; got {type(made).__name__}")
    check_spaces(made.observation_space, made.action_space)
    return made


class Models(NamedTuple):
    """The models that an agent is made of.

    Attributes:
        policy: the language model to train, without its adapter.
        reference: the frozen model that KL is measured from, or None where nothing needs it.
        value_start: the reward model that a separate value network starts from, or None.
    """

    policy: LanguageModel
    reference: LanguageModel | None
    value_start: RewardModel | None


def load_models(given: AgentSettings) -> Models:
    """Load the models that were given by name.

    Raises:
        ConfigError: policy and reference have different vocabularies, the policy is in float16 or quantized without an adapter,
            or LoRA's library is not installed.
        ModelError: a model cannot be loaded.
    """
    if given.lora is not None:
        require_peft()
    model = given.language_model
    if isinstance(model, str):
        model = LanguageModel.load(model, device=usable_device(given.device))
    if model.quantization is not None and given.lora is None and model.adapter is None:
        raise ConfigError(
            f"the weights of {model.name!r} are in 4 bits ({model.quantization}) and cannot learn: give lora={{...}}, an "
            "adapter on them, or load the model without quantization"
        )
    if product_dtype(given.precision, model.device) == torch.float32:  # the others learn with float32 weights
        check_precision(model, adapted=given.lora is not None)
    adapted = given.lora is not None
    reference = reference_of(model, given.reference, adapted=adapted) if given.needs_reference(vars(given)) else None
    start = getattr(given, "value_start", None)
    if isinstance(start, str | Path):
        start = RewardModel.load(start, device=str(model.device), tokenizer=model.tokenizer)
    return with_precision(Models(model, reference, start), given)


def with_precision(models: Models, given: AgentSettings) -> Models:
    """The models, computing in the wanted precision, with float32 weights where they learn.

    Args:
        models: those of an agent. Weights that learn are changed in place. A frozen base, which others may go on to use, stays
            as it is: the agent has a :class:`LanguageModel` of its own on the same tensors.
        given: the agent's settings.

    Raises:
        ConfigError: the device cannot compute in that precision.
    """
    dtype = product_dtype(given.precision, models.policy.device)
    if dtype != torch.float32 and given.lora is None:
        torch.nn.Module.to(models.policy.model, torch.float32)
    policy = _computing_in(dtype, models.policy)
    reference = models.reference
    if reference is not None:
        reference = policy if reference is models.policy else _computing_in(dtype, reference)
    if given.lora is None:
        models.policy.product_dtype, policy = policy.product_dtype, models.policy
    return Models(policy, reference, models.value_start)


def _computing_in(dtype: torch.dtype, model: LanguageModel) -> LanguageModel:
    """The model where it rounds products to this dtype already, else one on the same tensors that does."""
    wanted = None if dtype in (torch.float32, model.model.dtype) else dtype
    if model.product_dtype == wanted:
        return model
    other = copy.copy(model)
    other.product_dtype = wanted
    return other


def check_precision(model: LanguageModel, *, adapted: bool) -> None:
    """Refuse to train in float16, and warn of weights in bfloat16 and of a base that computes in it.

    Args:
        model: the policy before training.
        adapted: an adapter, which is in float32, will learn on top of it.

    Raises:
        ConfigError: the model is in float16.
    """
    adapted = adapted or model.adapter is not None
    if model.model.dtype == torch.float16 and adapted:
        raise ConfigError(
            f"the base {model.name!r} is in float16 and would compute in it, where small gradients of its adapter vanish: give "
            "precision='fp16', which scales the loss up against that (or 'bf16'), or load the base with dtype='float32'"
        )
    if model.model.dtype == torch.float16:
        raise ConfigError(
            f"{model.name!r} is in float16, in which small gradients and updates vanish: give precision='fp16' (or 'bf16'), "
            "which keeps float32 weights, or load it with dtype='float32' (a reference or a reward may be in float16)"
        )
    learns = [p.dtype for p in model.model.parameters() if p.requires_grad]
    if adapted and model.model.dtype == torch.bfloat16:
        warnings.warn(
            f"precision is float32, but the base {model.name!r} is in bfloat16 and computes in it, unlike its adapter: give "
            "precision='bf16' to say so, or load the base with dtype='float32'",
            stacklevel=2,
        )
    elif torch.bfloat16 in learns:
        warnings.warn(
            f"the weights of {model.name!r} that learn are in bfloat16: updates below 0.4% of a weight are lost, and the first "
            "ratios are not exactly 1; precision='bf16' keeps float32 weights, and so does a LoRA adapter",
            stacklevel=2,
        )


def reference_of(model: LanguageModel, given: LanguageModel | str | None, *, adapted: bool) -> LanguageModel:
    """The frozen model that KL is measured from: the given one, or the policy as it is now.

    A base never changes while adapters learn, so it can be the reference itself, which costs no memory. The copy of a policy
    that came with an adapter (of supervised fine-tuning, say) costs that of the adapter.

    Args:
        model: the policy before training.
        given: the reference, its name, :data:`BASE`, or None.
        adapted: a new adapter will learn on top of ``model``.

    Raises:
        ConfigError: the two have different vocabularies, or the base is wanted where there is no adapter.
    """
    base = model if adapted else model.base
    if given == BASE and base is None:
        raise ConfigError(
            f"reference={BASE!r} is the model beneath an adapter, and {model.name!r} has none: leave it out to measure KL from "
            "the policy as it is given, or give lora={...}"
        )
    if base is not None and (given in (BASE, base) or (given is None and (adapted or begins_as_base(model)))):
        return base
    if given is None:
        return model.frozen_copy()
    reference = LanguageModel.load(given, device=str(model.device)) if isinstance(given, str) else given
    check_vocabulary(model, reference)
    return reference.frozen_copy()


def check_vocabulary(model: LanguageModel, reference: LanguageModel, role: str = "reference") -> None:
    """Refuse a reference that has other tokens than the policy.

    Args:
        model: the policy.
        reference: what KL is to be measured from.
        role: what the message calls it.

    Raises:
        ConfigError: the two have different vocabularies.
    """
    ours, theirs = ((m.vocab_size, m.tokenizer.eos_id) for m in (model, reference))
    if ours != theirs:
        raise ConfigError(
            f"the {role} {reference.name!r} has {theirs[0]} logits and ends responses with id {theirs[1]}, "
            f"{model.name!r} has {ours[0]} and {ours[1]}: KL needs one and the same vocabulary"
        )


def learning_model(
    model: LanguageModel, lora: Lora | Mapping[str, Any] | None, seed: int, *, gradient_checkpointing: bool = False
) -> LanguageModel:
    """The model whose weights learn: the given one, or an adapter on it.

    Args:
        model: the given model.
        lora: settings of the adapter; None adds none.
        seed: seed of the adapter's random weights.
        gradient_checkpointing: compute activations anew in the backward pass.

    Raises:
        ConfigError: no weight learns.
        ModelError: the model's layers cannot be checkpointed.
    """
    if lora is not None:
        model = adapted(model, Lora.of(lora), seed=seed)
    if not any(p.requires_grad for p in model.model.parameters()):
        raise ConfigError(
            f"no weight of {model.name!r} learns: it is frozen (as the base of an adapter, perhaps); call "
            "language_model.model.requires_grad_(True), or give lora={...}"
        )
    checkpoint_layers(model.model, gradient_checkpointing)
    return model


def check_env(env: VecEnv, model: LanguageModel, reference: LanguageModel | None, *, by_name: bool = True) -> Limits:
    """Refuse, before any work starts, an environment that could not work.

    Args:
        env: the environment.
        model: the policy.
        reference: what KL is measured from, or None.
        by_name: False where the model was given as an object: its name need not lead to it then.

    Returns:
        The environment's fixed limits on tokens.

    Raises:
        ConfigError: it has other tokens than the model.
        ModelError: prompts and responses are too long for a model.
    """
    capacity, actions = check_observations(env)
    own = (
        repr(model.name) if by_name else "language_model.tokenizer (of an agent: agent.policy.language_model.tokenizer)"
    )
    if actions != model.vocab_size:
        raise ConfigError(
            f"the environment has {actions} actions, but {model.name!r} has {model.vocab_size} logits; make the "
            f"environment with the model's own tokenizer: tokenizer={own}"
        )
    limits = limits_of(env, model)
    ends = Limits.of(model.tokenizer)
    if limits.eos_id != ends.eos_id or set(limits.eos_ids) != set(ends.eos_ids):
        raise ConfigError(
            f"the environment ends responses with {_listed(limits.eos_ids)}, {model.name!r} with {_listed(ends.eos_ids)}; "
            f"make the environment with the model's own tokenizer: tokenizer={own}"
        )
    for one in filter(None, (model, reference)):
        try:
            one.check_fits(capacity - limits.max_new_tokens, limits.max_new_tokens)
        except ModelError as error:
            raise ModelError(
                f"{error}; rlhf_gym.tasks.too_long.fit_task(task, model, 'skip' or 'truncate') gives a task whose prompts fit"
            ) from None
    return limits


def check_observations(env: VecEnv) -> tuple[int, int]:
    """The longest observation and the number of actions of a token environment.

    Raises:
        ConfigError: its observations are not the ids of tokens, or a wrapper changes them.
    """
    normalized = unwrap_vec_normalize(env)
    if normalized is not None and normalized.norm_obs:
        raise ConfigError(
            "VecNormalize would turn the ids of tokens into other numbers: give VecNormalize(env, norm_obs=False), which "
            "scales rewards only"
        )
    return check_spaces(env.observation_space, env.action_space)


def sizes(n_episodes: int | None, batch_size: int | None, num_envs: int) -> tuple[int, int]:
    """The numbers of episodes per iteration and per minibatch.

    Args:
        n_episodes: the setting; None takes one episode per environment.
        batch_size: the setting; None takes all episodes of an iteration.
        num_envs: number of environments.

    Raises:
        ConfigError: they do not fit one another.
    """
    episodes = num_envs if n_episodes is None else n_episodes
    if episodes < 1 or episodes % num_envs:
        raise ConfigError(f"n_episodes ({episodes}) must be a multiple of the number of environments ({num_envs})")
    size = batch_size or episodes
    if not 1 <= size <= episodes:
        raise ConfigError(
            f"batch_size ({size}, episodes in a minibatch) must lie in 1..n_episodes ({episodes}): give a smaller "
            f"batch_size, or more n_episodes (a multiple of the number of environments, {num_envs})"
        )
    return episodes, size


def timesteps_to_learn(
    total_timesteps: int | None, iterations: int | None, *, done: int, most_per_iteration: int
) -> int:
    """Check how long ``learn`` is to train, and count that in timesteps.

    Args:
        total_timesteps: as ``learn`` was given it.
        iterations: likewise.
        done: iterations that the agent has done already.
        most_per_iteration: response tokens that an iteration generates at most.

    Returns:
        The timesteps; where only iterations are given, an upper bound for progress bars.

    Raises:
        ConfigError: one of the two is out of range, or both are None.
    """
    if iterations is not None and (isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1):
        raise ConfigError(f"iterations must be a whole number of at least 1, or None; got {iterations!r}")
    if total_timesteps is None and iterations is not None:
        return max(1, (iterations - done) * most_per_iteration)
    if isinstance(total_timesteps, bool) or not isinstance(total_timesteps, int | float) or not total_timesteps >= 1:
        raise ConfigError(f"total_timesteps must be a number of at least 1, got {total_timesteps!r}")
    return total_timesteps


def limits_of(env: VecEnv | None, model: LanguageModel) -> Limits:
    """The fixed limits on tokens: the environment's own where it has them, else those of its spaces and the tokenizer.

    Args:
        env: the environment; None where an agent has none.
        model: its tokenizer says which tokens end and pad.

    Raises:
        ConfigError: the environment leaves out of its infos what agents need, or its slots have different rules.
    """
    if env is None:
        return Limits.of(model.tokenizer)
    if (talks := text_env_inside(env)) is not None:
        return talks.rules.limits
    if (rules := rules_of(env)) is not None:
        if rules.infos != "texts":
            raise ConfigError(
                f"the environment was made with infos={rules.infos!r}, which leaves out what agents learn from: the rewards of "
                "single tokens, and which rewards failed; make it with infos='texts', the default"
            )
        return Limits(
            rules.eos_id, rules.suppress_tokens, rules.min_new_tokens, rules.max_new_tokens, rules.more_eos_ids
        )
    space = env.observation_space
    assert isinstance(space, gym.spaces.Dict)
    capacity, longest_prompt = int(space["ids"].shape[0]), int(space["prompt_length"].high.max())  # type: ignore[index, attr-defined]
    # The longest response fits behind the longest prompt.
    room = capacity - longest_prompt if 0 < longest_prompt < capacity else capacity
    return Limits.of(model.tokenizer, 0, room)


def _listed(ids: Sequence[int]) -> str:
    """Write the ids for a message: ``id 2``, ``ids 2 and 7``."""
    return f"id {ids[0]}" if len(ids) == 1 else f"ids {', '.join(map(str, ids[:-1]))} and {ids[-1]}"
