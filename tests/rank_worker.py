"""One of several processes that learn together, for tests: `python rank_worker.py FOLDER CASE...` in a launcher's environment.

Each case is a function below; rank 0 leaves what it returns in ``FOLDER/CASE.pt``.
"""

from __future__ import annotations

import os
import signal
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from completions_server import serving
from ppo_setups import Rows, letters_env, weights
from stable_baselines3.common.logger import Logger
from talking import PLAIN
from tiny_models import tiny_language_model
from torch.distributed.tensor import DTensor
from toy_tasks import count_a, letter_task

from rlhf_gym import agents
from rlhf_gym.agents.common import algorithm
from rlhf_gym.agents.common.callbacks import IterationCallback
from rlhf_gym.agents.common.divergence import SaveDivergence
from rlhf_gym.agents.common.launch import process_ranks
from rlhf_gym.agents.common.sharding import Shards
from rlhf_gym.envs import ConversationEnv, make_sb3_env, wrap_text_env
from rlhf_gym.errors import NotFiniteError
from rlhf_gym.rewards import RunningStandardise

ITERATIONS = 3


def agent_of(name: str, env: Any = None, **options: Any) -> Any:
    """An agent with a tiny model over letters; settings that it does not have are left out."""
    kind: Any = getattr(agents, name)
    given = {"learning_rate": 1e-2, "kl_coef": 0.05, "batch_size": 8, "n_episodes": 32, "seed": 3} | options
    if name == "SFT":
        given["data"] = [("abc", "aaa"), ("d", "ab"), ("efghij", "aaaaa"), ("bb", "a")] * 5
    if name == "PreferenceOptimization":
        given["preferences"] = [
            ("abc", "aaa", "c"),
            ("d", "ab", "ddd"),
            ("efghij", "aaaaa", "b"),
            ("bb", "a", "bb"),
        ] * 5
    if name == "ILQL":
        given["trajectories"] = [
            ("abc", "aaa", 3.0),
            ("d", "ab", 1.0),
            ("efghij", "bab", [0, 1, 0]),
            ("bb", "b", 0.0),
        ] * 5
    return kind(
        "LMPolicy", env or letters_env(), language_model=tiny_language_model(scale=4.0), device="cpu",
        **{key: value for key, value in given.items() if key in kind.Settings.names()},
    )  # fmt: skip


def learned(agent: Any, iterations: int = ITERATIONS, **options: Any) -> dict[str, Any]:
    """Train, and return everything that must not depend on the number of processes."""
    rows = Rows()
    agent.set_logger(Logger(None, [rows]))
    agent.learn(iterations=iterations, reset_num_timesteps=False, **options)
    numbers = [{name: float(value) for name, value in row.items() if not name.startswith("time/")} for row in rows.rows]
    episodes = [(e.prompt_ids, e.response_ids, e.rewards) for e in agent.rollout.episodes]
    return {"rows": numbers, "episodes": episodes, "weights": weights(agent), "timesteps": agent.num_timesteps}


def adaptive_env() -> Any:
    """Prompts in epochs, and a reward whose scale is learned from the scores so far."""
    task = letter_task(RunningStandardise(count_a), limit=8)
    tokenizer = letters_env(1).env.episodes.tokenizer
    return make_sb3_env(16, task=task, tokenizer=tokenizer, prompt_order="epochs")


def ppo_agent() -> Any:
    """PPO with an adaptive reward and KL coefficient, a separate value network, early stops and a limit of the KL."""
    return agent_of(
        "PPO", adaptive_env(), kl_target=0.1, kl_horizon=100, value_network="separate", target_kl=0.02, kl_limit=5.0,
        value_warmup=1, whiten_rewards=True, ent_coef=0.01,
    )  # fmt: skip


def ppo(folder: Path) -> dict[str, Any]:
    """The first iteration, a checkpoint, and the others."""
    agent = ppo_agent()
    agent.learn(iterations=1, reset_num_timesteps=False)
    agent.save(folder / "saved_by_several")
    return learned(agent)


def resumed(folder: Path) -> dict[str, Any]:
    """The others from a checkpoint of one process, and how many of its moments are left when weights are gathered."""
    agent = agents.PPO.load(folder / "saved_by_one", env=adaptive_env())
    moments = [
        weakref.ref(state[name])
        for state in agent.policy.optimizer.state.values()
        for name in ("exp_avg", "exp_avg_sq")
    ]
    assert moments
    left, gather = list[int](), Shards.gather

    def noted(shards: Shards) -> None:
        left.append(sum(moment() is not None for moment in moments))
        gather(shards)

    Shards.gather = noted  # type: ignore[method-assign]
    found = learned(agent)
    Shards.gather = gather  # type: ignore[method-assign]
    return {**found, "left": left}


def grpo(folder: Path) -> dict[str, Any]:
    """GRPO with dynamic sampling, which leaves minibatches of uneven sizes, and with a seed that rank 0 draws."""
    agent = agent_of("GRPO", group_size=4, dynamic_sampling=True, max_resamples=1, kl_coef=0.1, batch_size=7, seed=None)
    assert process_ranks().lead(lambda: agent.seed) == agent.seed
    return learned(agent_of("GRPO", group_size=4, dynamic_sampling=True, max_resamples=1, kl_coef=0.1, batch_size=7))


def talks(folder: Path) -> dict[str, Any]:
    """Conversations, whose prompts are drawn by how the responses have done."""
    env = wrap_text_env(
        ConversationEnv(letter_task(), user=["b"], max_turns=2), 16, tokenizer=letters_env(1).env.episodes.tokenizer,
        template=PLAIN, max_new_tokens=3, max_context=40, prompt_order="advantage",
    )  # fmt: skip
    return learned(agent_of("GRPO", env, group_size=4))


class Saves(IterationCallback):
    """Saves on rank 0, by itself, after an iteration."""

    def __init__(self, path: Path, iteration: int) -> None:
        super().__init__()
        self.path, self.iteration = path, iteration

    def on_iteration_end(self, agent: Any) -> bool:
        if agent.iteration == self.iteration:
            agent.save(self.path)
        return True


def limited(folder: Path) -> dict[str, Any]:
    """Weights that a limit of the KL gives back, a checkpoint by a callback, and what each rank holds at the first step."""
    agent = agent_of("GRPO", group_size=4, learning_rate=3e-2, kl_limit=1.0, on_kl_limit="back_off", batch_size=16)
    held: list[dict[str, list[int]]] = []
    step, loaded = algorithm.clipped_step, [*agent.policy.parameters(), *agent.reference.model.parameters()]

    def noted(policy: Any, *arguments: Any, **options: Any) -> Any:
        out = step(policy, *arguments, **options)
        moments = [entry["exp_avg"] for entry in policy.optimizer.state.values()]
        reference = list(agent.reference.model.parameters())
        kept = {"weights": list(policy.parameters()), "moments": moments, "reference": reference, "loaded": loaded}
        if isinstance(moments[0], DTensor):
            held.append({name: [_local(one).numel() for one in tensors] for name, tensors in kept.items()})
        return out

    algorithm.clipped_step = noted
    found = learned(agent, iterations=4, callback=Saves(folder / "saved_by_callback", 3))
    algorithm.clipped_step = step
    sizes = [weight.numel() for weight in agent.policy.parameters()]
    return {**found, "held": agent.ranks.gather(lambda: held[:1]), "sizes": sizes, "broken": broken(agent, folder)}


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def broken(agent: Any, folder: Path) -> str:
    """The message of a loss that is infinite on one rank; the batch is saved with the agent."""
    losses, second = agent.losses, agent.ranks.rank == 1

    def infinite(*arguments: Any) -> Any:
        terms, metrics = losses(*arguments)
        return {name: loss / (0.0 if second else 1.0) for name, loss in terms.items()}, metrics

    if agent.ranks.size > 1:
        agent.losses = infinite
        try:
            agent.learn(iterations=agent.iteration + 1, reset_num_timesteps=False, callback=SaveDivergence(folder))
        except NotFiniteError as error:
            return str(error)
    return ""


def adapted(folder: Path) -> dict[str, Any]:
    """An adapter, whose base is the reference; the value network has a rate and a limit of the gradient of its own."""
    return learned(
        agent_of("PPO", lora={"rank": 2}, value_network="separate", value_learning_rate=1e-3, value_max_grad_norm=0.5)
    )


def half(folder: Path) -> dict[str, Any]:
    """Products in float16, with a scale of the loss."""
    return learned(agent_of("PPO", precision="fp16"), 1)


def kto(folder: Path) -> dict[str, Any]:
    """Minibatches that need passes of the reference."""
    return learned(agent_of("PreferenceOptimization", loss="kto"))


def served(folder: Path) -> dict[str, Any]:
    """Responses of a server; and the seeds that it was asked for, and the versions of the weights that came."""
    ranks = process_ranks()
    with serving(tiny_language_model(scale=4.0)) if ranks.is_main else nullcontext() as server:
        url = ranks.from_main(lambda: server.url)
        agent = agent_of("GRPO", group_size=4, engine=f"vllm:{url}", engine_patience=0.0)
        found = learned(agent, 2)
        agent.close()
        asked = {} if server is None else {
            "seeds": sorted(body["seed"] for body in server.bodies("/v1/completions")),
            "versions": [body["new_version"].split("-")[3:4] for body in server.bodies("/update_weight_version")],
        }  # fmt: skip
    return {**found, **asked}


def every(name: str) -> Callable[[Path], dict[str, Any]]:
    """The case of an agent with the settings that it begins with."""
    # With ReinforcePlusPlus's other seed, noise falls on the edge of two tokens, where rounding decides.
    return lambda folder: learned(agent_of(name, seed=4 if name == "ReinforcePlusPlus" else 3))


def stepped(folder: Path) -> dict[str, Any]:
    """Responses by steps of the environment, which rank 0 takes alone."""
    return learned(agent_of("PPO", collect="step"))


class Stops(IterationCallback):
    """Stops after an iteration, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = self.ends = 0

    def _on_step(self) -> bool:
        self.steps += 1
        return True

    def on_iteration_end(self, agent: Any) -> bool:
        self.ends += 1
        agent.save("by_a_callback")  # of one rank alone: it must not wait for the others
        return False


def faults(folder: Path) -> dict[str, Any]:
    """What each rank reports of every fault, and that callbacks are called by rank 0."""
    ranks, found = process_ranks(), {}
    second = ranks.rank == 1

    def note(fault: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            found[fault] = f"{type(error).__name__}: {error}"

    def fails(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        raise ValueError("no score today")

    os.chdir(folder)
    hook = Stops()
    agent_of("PPO").learn(iterations=3, callback=hook)
    calls = (hook.ends, hook.steps > 0)
    note("settings", lambda: agent_of("PPO", kl_coef=0.1 if second else 0.2).learn(iterations=1))
    note("slots", lambda: agent_of("PPO", letters_env(15), n_episodes=30))
    note("groups", lambda: agent_of("GRPO", letters_env(12), n_episodes=24, group_size=4, batch_size=4))
    reward = make_sb3_env(16, task=letter_task(fails), tokenizer=letters_env(1).env.episodes.tokenizer)
    note("reward", lambda: agent_of("PPO", reward).learn(iterations=1))
    agent = agent_of("PPO")
    losses = agent.losses

    def out_of_memory(*arguments: Any) -> Any:
        if second:
            raise MemoryError
        return losses(*arguments)

    agent.losses = out_of_memory
    note("memory", lambda: agent.learn(iterations=1))

    def infinite(*arguments: Any) -> Any:
        terms, metrics = losses(*arguments)
        return {name: loss / (0.0 if second else 1.0) for name, loss in terms.items()}, metrics

    agent.losses = infinite
    told: list[str] = []

    class Divergence(IterationCallback):
        def on_divergence(self, agent: Any, error: Exception) -> None:
            told.append(str(error))

    note("divergence", lambda: agent.learn(iterations=1, callback=Divergence()))
    agent = agent_of("PPO")
    if second:
        with torch.no_grad():
            next(agent.policy.parameters()).view(-1)[0] += 1e-6
    note("weights", lambda: agent.learn(iterations=1))
    both = ranks.gather(lambda: (found, calls, told))
    if second:
        os.kill(os.getpid(), signal.SIGKILL)
    lost: dict[str, str] = {}
    found = lost
    note("killed", lambda: ranks.gather(lambda: 0))
    return {"both": both, "killed": lost["killed"]}


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ppo": ppo, "resumed": resumed, "grpo": grpo, "faults": faults, "stepped": stepped, "talks": talks,
    "limited": limited, "adapted": adapted, "half": half, "kto": kto, "served": served,
    **{name: every(name) for name in (
        "PPO", "NLPO", "TRPO", "A2C", "REINFORCE", "ReinforcePlusPlus", "RLOO", "GSPO", "OnlineDPO", "RAFT", "ReMax", "SFT",
        "PreferenceOptimization", "ILQL",
    )},
}  # fmt: skip

if __name__ == "__main__":
    target = Path(sys.argv[1])
    for case in sys.argv[2:]:
        result = CASES[case](target)
        if process_ranks().is_main:
            torch.save(result, target / f"{case}.pt")
