"""The contenders of `ppo.py`: each builds its trainer on the same model and prompts, and yields once an iteration.

All have the same random Llama of 3.7 million parameters over 2,048 ids, 64 prompts of equally many tokens, and responses that
never end early, so that all process the same tokens.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import stable_baselines3
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_gym.agents import GRPO, PPO, RLOO, LMPolicy
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.tasks.symbol_tokenizer import SymbolTokenizer

VOCABULARY, EPISODES, MINIBATCH = 2048, 64, 16
PROMPT = int(os.environ.get("SPEED_PROMPT", "16"))  # tokens; `ppo.py --prompt` sets it for its workers
SYMBOLS = "".join(chr(0x4E00 + i) for i in range(VOCABULARY - 2))
LEARNING_RATE = 1e-5
GROUP, KL = 8, 0.04  # of GRPO and RLOO: responses to a prompt, the KL coefficient in the loss

Phases = dict[str, float]  # seconds of wall time, by phase
Contender = Callable[[int, int, int], Iterator[Phases]]  # response length, learning passes, episodes an iteration


def network() -> LlamaForCausalLM:
    """The model, the same for all contenders."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        pad_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def prompts() -> list[str]:
    """64 prompts, all different."""
    return [SYMBOLS[i : i + PROMPT] for i in range(EPISODES)]


def flop(length: int, passes: int) -> float:
    """Floating-point operations of the model's matrices for an episode.

    With P parameters, a token takes 2P to generate, 2P in the reference and 6P in each learning pass. Prompts go through the
    layers once in each; the vocabulary's matrix is needed at response tokens only. Attention's products are left out, some
    percent at these lengths.

    Args:
        length: response tokens.
        passes: learning passes an iteration.
    """
    model = network()
    layers = sum(p.numel() for p in model.model.layers.parameters())
    head = model.lm_head.weight.numel()
    tokens = (PROMPT + length) * layers + length * head
    return float((2 + 2 + 6 * passes) * tokens)


def nothing(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that costs nothing; not constant, so that there is something to learn."""
    return [float(ord(r[0]) % 2) for r in responses]


def environment(num_envs: int, length: int) -> Any:
    """Token environments whose responses are exactly ``length`` tokens long."""
    task = Task("speed", [Prompt(p) for p in prompts()], reward=nothing, max_new_tokens=length, min_new_tokens=length)
    return make_sb3_env(num_envs, task=task, tokenizer=SymbolTokenizer(SYMBOLS), seed=0)


def ours(kind: Any, length: int, passes: int, episodes: int, **options: Any) -> Iterator[Phases]:
    """Run one of our agents by its public interface."""
    model = LanguageModel(network(), SymbolTokenizer(SYMBOLS), "speed")
    agent = kind(
        "LMPolicy", environment(episodes, length), language_model=model, n_epochs=passes, batch_size=min(MINIBATCH, episodes),
        learning_rate=LEARNING_RATE, seed=0, device="cpu", **options,
    )  # fmt: skip
    while True:
        agent.learn(episodes * length, reset_num_timesteps=False)
        yield dict(agent.seconds)


def stock(length: int, passes: int, episodes: int) -> Iterator[Phases]:
    """Run stable-baselines3's own PPO on the same environment and model: every token runs its whole prefix."""
    model = LanguageModel(network(), SymbolTokenizer(SYMBOLS), "speed")
    # Other agents suppress EOS by the action mask; stock PPO has none, so the policy gets the same limits.
    limits = Limits(0, (1,), length, length)

    class Policy(LMPolicy):
        """Has the constructor that stable-baselines3 calls."""

        def __init__(self, observation_space: Any, action_space: Any, lr_schedule: Any, **_: Any) -> None:
            super().__init__(observation_space, action_space, model, Sampling(), limits)
            self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1), eps=1e-5)

    agent = stable_baselines3.PPO(
        Policy, environment(episodes, length), n_steps=length, batch_size=min(64, episodes * length), n_epochs=passes,
        learning_rate=LEARNING_RATE, seed=0, device="cpu",
    )  # fmt: skip
    spent = {"generation": 0.0, "learning": 0.0}
    agent.collect_rollouts = timed(agent.collect_rollouts, spent, "generation")  # type: ignore[method-assign]
    agent.train = timed(agent.train, spent, "learning")  # type: ignore[method-assign]
    while True:
        spent.update(generation=0.0, learning=0.0)
        agent.learn(episodes * length, reset_num_timesteps=False)
        yield dict(spent)


def timed(function: Callable[..., Any], spent: Phases, phase: str) -> Callable[..., Any]:
    """The function, with its wall time added to a phase."""

    def call(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[phase] = spent.get(phase, 0.0) + time.perf_counter() - began

    return call


def bare(length: int, passes: int, episodes: int) -> Iterator[Phases]:
    """Run the passes without PPO: transformers' generate, a reference pass, forward, backward and AdamW of a plain loss."""
    model = network()
    reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    tokenizer = SymbolTokenizer(SYMBOLS)
    prompt_ids = torch.tensor([tokenizer.encode(p) for p in prompts()])[:episodes]
    generator = np.random.default_rng(0)

    def log_probs(network: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
        logits = network(ids).logits[:, PROMPT - 1 : -1]
        return logits.log_softmax(-1).gather(-1, ids[:, PROMPT:, None]).squeeze(-1)

    while True:
        phases: Phases = {}
        began = time.perf_counter()
        with torch.no_grad():
            ids = model.generate(  # type: ignore[attr-defined]
                prompt_ids, attention_mask=torch.ones_like(prompt_ids), do_sample=True, top_k=0,
                min_new_tokens=length, max_new_tokens=length, pad_token_id=1,
            )  # fmt: skip
            phases["generation"] = time.perf_counter() - began
            began = time.perf_counter()
            old = log_probs(reference, ids)
            phases["reference"] = time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(passes):
            order = generator.permutation(episodes)
            for start in range(0, episodes, MINIBATCH):
                rows = torch.from_numpy(order[start : start + MINIBATCH])
                (log_probs(model, ids[rows]) - old[rows]).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        phases["learning"] = time.perf_counter() - began
        yield phases


CONTENDERS: dict[str, Contender] = {
    "ours": partial(ours, PPO),
    "ours, separate value network": partial(ours, PPO, value_network="separate"),
    "bare loop": bare,
    "stock SB3": stock,
    "our GRPO": partial(ours, GRPO, group_size=GROUP, kl_coef=KL),
    "our GRPO, whole groups": partial(ours, GRPO, group_size=GROUP, kl_coef=KL, minibatch_groups=True),
    "our RLOO": partial(ours, RLOO, group_size=GROUP, kl_coef=KL, clip_range=0.2),  # as TRL's has
    "ours, bf16": partial(ours, PPO, precision="bf16"),
    "our GRPO, bf16": partial(ours, GRPO, group_size=GROUP, kl_coef=KL, precision="bf16"),
}
