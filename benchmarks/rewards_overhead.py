"""Measures the cost of the reward layer, and of a slow reward in place and overlapped with decoding.

    python benchmarks/rewards_overhead.py                       # some ten minutes on one core
    python benchmarks/rewards_overhead.py --delay 0.2 --turns 9 --out rewards.json

Three tables, all on the embedded model and the sentiment task, one PPO iteration being 64 responses:

- *A call*: microseconds of a call of a reward that does nothing: directly, through `score` (arguments, checks, terms), as a sum
  of five terms, and through `score` in another thread, waited for; medians over many calls that take turns.
- *An iteration*: seconds of the iteration, and the share of it that the layer took: everything from a generated response to
  its score and infos, without the reward's own time. Medians over turns.
- *A slow reward*: one that sleeps for ``--delay`` seconds a call, called in place and overlapped with other work. Both train
  in the same turns from the same seed, so they do the same work; the ratio is the median of the ratios within a turn. ``floor``
  is the same run with a reward that does nothing; ``hidden`` is the share of the calls' time that the agent did not wait for.

Seconds are wall time; with ``--clock cpu``, for machines that have other work to do, they are the process's CPU time plus the
time that it waited for rewards.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from rlhf_gym.agents import PPO
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.envs.scoring import EndedEpisodes
from rlhf_gym.rewards import score, term
from rlhf_gym.rewards.service.overlap import OverlappedScoring

EPISODES, MINIBATCH = 64, 16
TERMS = 5


class Reward:
    """Gives 0 or 1 by the response's length; sleeps first, if there is a delay.

    Args:
        delay: seconds to sleep.
        slow: True declares it slow, so that agents overlap its calls.

    Attributes:
        seconds: the time of all calls together.
    """

    name = "nothing"

    def __init__(self, delay: float = 0.0, *, slow: bool = False) -> None:
        self.delay, self.slow = delay, slow
        self.seconds = 0.0

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        """Score a batch."""
        began = time.perf_counter()
        if self.delay:
            time.sleep(self.delay)
        scores = [float(len(r) % 2) for r in responses]
        self.seconds += time.perf_counter() - began
        return scores


def summed(reward: Any) -> Any:
    """The reward as one of five terms."""
    return sum((0.1 * term(lambda p, r: [0.0] * len(r), f"term {i}") for i in range(TERMS - 1)), start=term(reward))


class Trainer:
    """PPO with a reward, an iteration at a time.

    Args:
        reward: the reward that it trains against.
        parts: the rewards in it whose own time is not the layer's.
        batches: batches in which an iteration's responses are generated and scored.
        episodes: responses an iteration.
        clock: ``"wall"`` or ``"cpu"``.
    """

    def __init__(
        self, reward: Any, parts: Sequence[Reward], batches: int = 1, episodes: int = EPISODES, clock: str = "wall"
    ) -> None:
        self.parts, self.clock = parts, clock
        env = make_sb3_env(episodes // batches, task="sentiment", reward=reward, seed=0)
        self.agent = PPO(
            "LMPolicy", env, language_model="embedded", n_episodes=episodes, batch_size=min(MINIBATCH, episodes), seed=0,
            device="cpu",
        )  # fmt: skip
        self.layer = 0.0
        self._score_ended = env.score_ended
        env.score_ended = self._timed  # type: ignore[method-assign]
        self.turn()  # warms up

    def _timed(self, ended: EndedEpisodes) -> Any:
        before, began = sum(p.seconds for p in self.parts), time.perf_counter()
        found = self._score_ended(ended)
        self.layer += time.perf_counter() - began - (sum(p.seconds for p in self.parts) - before)
        return found

    def turn(self) -> dict[str, float]:
        """Run an iteration; returns its seconds, and those of the layer, of the reward's calls, and of waiting for them."""
        self.layer = 0.0
        began, cpu = time.perf_counter(), time.process_time()
        self.agent.learn(1, reset_num_timesteps=False)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        scoring, waited = self.agent.seconds["scoring"], self.agent.seconds["reward"]
        assert scoring is not None
        seconds = cpu + waited if self.clock == "cpu" else wall
        return {"seconds": seconds, "layer": self.layer, "scoring": scoring, "waited": waited}


def calls(size: int, repeats: int) -> dict[str, float]:
    """Median seconds of a call, by way of calling.

    Args:
        size: samples a call.
        repeats: calls of each.
    """
    prompts, responses = [f"prompt {i}" for i in range(size)], [f"a response of {i} words" for i in range(size)]
    columns = {"label": [1] * size}
    reward = Reward()
    ways: dict[str, Callable[[], Any]] = {
        "direct": partial(reward, prompts, responses),
        "score": partial(score, reward, prompts, responses, columns),
        f"sum of {TERMS}": partial(score, summed(reward), prompts, responses, columns),
    }
    times: dict[str, list[float]] = {name: [] for name in [*ways, "in a thread"]}
    with OverlappedScoring(threaded=True) as scoring:
        ways["in a thread"] = lambda: scoring.wait(scoring.submit(ways["score"]))
        for _ in range(repeats):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - began)
    return {name: median(found) for name, found in times.items()}


def take_turns(trainers: dict[str, Trainer], turns: int) -> dict[str, list[dict[str, float]]]:
    """Run each trainer's iterations, one after the other in every turn."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trainers}
    for _ in range(turns):
        for name, trainer in trainers.items():
            found[name].append(trainer.turn())
    return found


def layer_rows(turns: int, episodes: int, clock: str) -> list[dict[str, Any]]:
    """Measure the layer's share of an iteration."""
    plain, one_of_five = Reward(), Reward()
    trainers = {
        "one reward": Trainer(plain, [plain], episodes=episodes, clock=clock),
        f"sum of {TERMS}": Trainer(summed(one_of_five), [one_of_five], episodes=episodes, clock=clock),
    }
    return [
        {
            "reward": name,
            "seconds": median(t["seconds"] for t in found),
            "layer": median(t["layer"] for t in found),
            "share": median(t["layer"] / t["seconds"] for t in found),
        }
        for name, found in take_turns(trainers, turns).items()
    ]


def slow_row(batches: int, delay: float, turns: int, episodes: int, clock: str) -> dict[str, Any]:
    """Measure a slow reward, in place and overlapped with other work."""
    rewards = {"floor": Reward(), "in place": Reward(delay), "overlapped": Reward(delay, slow=True)}
    found = take_turns({name: Trainer(r, [r], batches, episodes, clock) for name, r in rewards.items()}, turns)
    pairs = list(zip(found["overlapped"], found["in place"], strict=True))
    return {
        "delay": delay,
        "batches": batches,
        "scoring": median(place["scoring"] for _, place in pairs),
        **{name: median(t["seconds"] for t in found[name]) for name in rewards},
        "ratio": median(overlapped["seconds"] / place["seconds"] for overlapped, place in pairs),
        "hidden": median(1 - t["waited"] / t["scoring"] for t in found["overlapped"]),
        "waited": {name: median(t["waited"] / t["seconds"] for t in found[name]) for name in rewards},
        "turns": found,
    }


def main() -> None:
    """Print the tables; with ``--out``, write them as JSON too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="iterations of each, after one that warms up")
    parser.add_argument("--calls", type=int, default=2000, help="calls of each in the first table")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="responses an iteration")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 4], help="batches an iteration, for the slow reward"
    )
    parser.add_argument("--delay", type=float, nargs="+", default=[0.05, 0.5], help="seconds that a slow call sleeps")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", help="write the measurements as JSON to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, {arguments.threads} threads, {arguments.clock} time\n"
    )

    by_size = {size: calls(size, arguments.calls) for size in (1, arguments.episodes)}
    _head("samples a call", *by_size[1])
    for size, row in by_size.items():
        _line(size, *(f"{1e6 * seconds:.1f} µs" for seconds in row.values()))

    rows = layer_rows(arguments.turns, arguments.episodes, arguments.clock)
    _head("reward", "iteration", "layer", "share")
    for row in rows:
        _line(row["reward"], f"{row['seconds']:.2f} s", f"{1e3 * row['layer']:.2f} ms", f"{row['share']:.3%}")

    slow = []
    columns = ["delay", "batches", "calls take", "floor", "in place", "overlapped", "overlapped / in place", "hidden"]
    _head(*columns, "waited in place", "waited overlapped")
    for delay in arguments.delay:
        for batches in arguments.batches:
            slow.append(row := slow_row(batches, delay, arguments.turns, arguments.episodes, arguments.clock))
            seconds = [f"{row[name]:.2f} s" for name in ("scoring", "floor", "in place", "overlapped")]
            shares = [f"{row['waited'][name]:.1%}" for name in ("in place", "overlapped")]
            _line(f"{1e3 * delay:.0f} ms", batches, *seconds, f"{row['ratio']:.2f}", f"{row['hidden']:.0%}", *shares)
    if arguments.out:
        results = {"calls": by_size, "layer": rows, "slow": slow}
        Path(arguments.out).write_text(json.dumps(results, indent=1), encoding="utf-8")


def _head(*names: object) -> None:
    print()
    _line(*names)
    _line(*["---"] * len(names))


def _line(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
