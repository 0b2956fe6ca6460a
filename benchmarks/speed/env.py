"""Environment steps per second with random actions: ours, `SyncVectorEnv` of our own single environment, and bare loops.

    python benchmarks/speed/env.py                      # the whole table, some minutes on one core
    python benchmarks/speed/env.py --batch 256 --length 16 512 --seconds 0.5

There is no language model and the reward costs nothing, so the environment alone is timed: prompts of 16 tokens, 4,096 token
ids, every action drawn uniformly beforehand. One step of a batch of N counts as N environment steps; seconds are the process's
CPU time, on which the machine's other work has less influence.

Columns:

- ``sync``: `gymnasium.vector.SyncVectorEnv` of N single environments.
- ``native``: `TokenVectorEnv` as `gym.make_vec` gives it; every observation is a copy.
- ``views``: the same with ``copy_observations=False``.
- ``copy floor``: a bare NumPy loop that appends a token to each row, starts over at the limit and copies ids and lengths.
- ``append floor``: the same loop without the copy.
- ``ends floor``: the loop with the copy that also detects the ends of episodes, by EOS or at the limit, decodes the responses,
  calls the reward and draws new prompts: the work of every such environment, without checks, infos and resets.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from rlhf_gym.envs import TokenEnv, TokenVectorEnv
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.tasks.symbol_tokenizer import SymbolTokenizer

VOCABULARY, PROMPT = 4096, 16
SYMBOLS = "".join(chr(0x4E00 + i) for i in range(VOCABULARY - 2))
TOKENIZER = SymbolTokenizer(SYMBOLS)
WARM_UP = 20
BLOCK = 64  # steps of actions drawn beforehand


def nothing(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that costs nothing."""
    return [0.0] * len(prompts)


def task(length: int) -> Task:
    """64 prompts of 16 tokens, responses of at most ``length``."""
    prompts = [Prompt(SYMBOLS[i : i + PROMPT]) for i in range(64)]
    return Task("speed", prompts, reward=nothing, max_new_tokens=length)


def env_stepper(env: Any, num_envs: int) -> Callable[[int], None]:
    """A function that steps an environment with random actions, and goes on at the next call."""
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, VOCABULARY, (BLOCK, num_envs))

    def run(steps: int) -> None:
        for k in range(steps):
            env.step(actions[k % BLOCK])

    return run


def floor_stepper(num_envs: int, length: int, copy: bool) -> Callable[[int], None]:
    """The bare loop: append, start over at the limit, and with ``copy`` copy an observation's arrays."""
    ids = np.full((num_envs, PROMPT + length), 1, dtype=np.int64)
    lengths = np.full(num_envs, PROMPT, dtype=np.int64)
    rows = np.arange(num_envs)
    actions = np.random.default_rng(0).integers(0, VOCABULARY, (BLOCK, num_envs))
    appended = 0

    def run(steps: int) -> None:
        nonlocal appended
        for k in range(steps):
            ids[rows, lengths] = actions[k % BLOCK]
            lengths[:] += 1
            appended += 1
            if appended == length:
                ids[:, PROMPT:] = 1
                lengths[:] = PROMPT
                appended = 0
            if copy:
                ids.copy(), lengths.copy()

    return run


def ends_floor_stepper(num_envs: int, length: int) -> Callable[[int], None]:
    """The bare loop that also ends episodes: it decodes responses, calls the reward, and draws other prompts."""
    rng = np.random.default_rng(0)
    table = np.full((64, PROMPT + length), TOKENIZER.pad_id, dtype=np.int64)
    texts = [SYMBOLS[i : i + PROMPT] for i in range(64)]
    for row, text in zip(table, texts, strict=True):
        row[:PROMPT] = TOKENIZER.encode_prompt(text)
    drawn = rng.integers(64, size=num_envs)
    ids, lengths, rows = table[drawn], np.full(num_envs, PROMPT, dtype=np.int64), np.arange(num_envs)
    actions = rng.integers(0, VOCABULARY, (BLOCK, num_envs))

    def run(steps: int) -> None:
        for k in range(steps):
            taken = actions[k % BLOCK]
            ids[rows, lengths] = taken
            lengths[:] += 1
            ended = np.flatnonzero((taken == TOKENIZER.eos_id) | (lengths == PROMPT + length))
            if len(ended):
                responses = TOKENIZER.decode_batch(ids[ended, PROMPT:], lengths[ended] - PROMPT)
                nothing([texts[i] for i in drawn[ended]], responses)
                drawn[ended] = rng.integers(64, size=len(ended))
                ids[ended] = table[drawn[ended]]
                lengths[ended] = PROMPT
            ids.copy(), lengths.copy()

    return run


def steppers(num_envs: int, length: int) -> dict[str, Callable[[], Callable[[int], None]]]:
    """The loops to time, by column."""
    shared = task(length)
    single = partial(TokenEnv, shared, TOKENIZER)
    return {
        "sync": lambda: env_stepper(gym.vector.SyncVectorEnv([single] * num_envs), num_envs),
        "native": lambda: env_stepper(TokenVectorEnv(num_envs, shared, TOKENIZER), num_envs),
        "views": lambda: env_stepper(TokenVectorEnv(num_envs, shared, TOKENIZER, copy_observations=False), num_envs),
        "copy floor": lambda: floor_stepper(num_envs, length, copy=True),
        "append floor": lambda: floor_stepper(num_envs, length, copy=False),
        "ends floor": lambda: ends_floor_stepper(num_envs, length),
    }


def seconds_a_step(run: Callable[[int], None], length: int, seconds: float, most: int) -> float:
    """Mean CPU seconds of a step, measured over whole episodes, or over pieces of ``most`` steps.

    Args:
        run: takes a given number of steps.
        length: steps of an episode.
        seconds: about the time to measure for.
        most: the most steps between two looks at the clock.
    """
    run(min(length + 1, WARM_UP))
    chunk, steps, began = min(length + 1, most), 0, time.process_time()
    while (elapsed := time.process_time() - began) < seconds:
        run(chunk)
        steps += chunk
    return elapsed / steps


def measure(num_envs: int, length: int, seconds: float, repeats: int) -> dict[str, float]:
    """Seconds a step, by column: the best of ``repeats``, in which the columns take turns."""
    built = {name: build() for name, build in steppers(num_envs, length).items()}
    best = dict.fromkeys(built, float("inf"))
    for _ in range(repeats):
        for name, run in built.items():
            # Whole episodes of thousands of single environments take minutes; without their ends `sync` only looks faster.
            most = 32 if name == "sync" else length + 1
            best[name] = min(best[name], seconds_a_step(run, length, seconds / repeats, most))
    return best


def growth(num_envs: int, length: int) -> float:
    """Time of a step in the last quarter of an episode over that in the first quarter; 1 if it does not grow."""
    run = env_stepper(TokenVectorEnv(num_envs, task(length), TOKENIZER, max_episode_steps=length), num_envs)
    quarter = length // 4
    first, last = [], []
    for _ in range(12):
        for times, steps in ((first, quarter), ([], length - 2 * quarter - 1), (last, quarter)):
            began = time.process_time()
            run(steps)
            times.append((time.process_time() - began) / steps)
        run(2)  # the end, and the step that starts over
    return float(np.median(last) / np.median(first))


def memory(num_envs: int, steps: int) -> tuple[int, int]:
    """Bytes that Python and NumPy hold after that many environment steps, and at the peak, above those held before."""
    run = env_stepper(TokenVectorEnv(num_envs, task(64), TOKENIZER), num_envs)
    run(200)
    tracemalloc.start()
    run(200)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    run(steps // num_envs)
    gc.collect()
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return now - before, peak - before


def main() -> None:
    """Print the table; with ``--out``, write it as JSON too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 256, 4096])
    parser.add_argument("--length", type=int, nargs="+", default=[16, 128, 512])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement")
    parser.add_argument(
        "--repeats", type=int, default=3, help="measurements, of which the best counts; columns take turns"
    )
    parser.add_argument("--steps", type=int, default=1_000_000, help="environment steps over which memory is measured")
    parser.add_argument("--out", help="write the measurements as JSON to this file")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    print("million environment steps a second; ratios of time")
    names = ["sync", "native", "views", "copy floor", "append floor", "ends floor"]
    header = ["batch", "length", *names, "sync/native", "native/copy floor", "views/append floor", "native/ends floor"]
    print(" | ".join(header))
    rows: list[dict[str, Any]] = []
    for length in arguments.length:
        for num_envs in arguments.batch:
            best = measure(num_envs, length, arguments.seconds, arguments.repeats)
            ratios = [
                best["sync"] / best["native"],
                best["native"] / best["copy floor"],
                best["views"] / best["append floor"],
                best["native"] / best["ends floor"],
            ]
            speeds = [f"{num_envs / best[name] / 1e6:.3f}" for name in names]
            print(" | ".join([str(num_envs), str(length), *speeds, *(f"{r:.1f}" for r in ratios)]), flush=True)
            rows.append({"batch": num_envs, "length": length, "seconds_a_step": best})
    grown = growth(256, max(arguments.length))
    left, peak = memory(256, arguments.steps)
    print(f"a step late in a response of {max(arguments.length)} tokens over an early one: {grown:.2f}")
    print(
        f"memory after {arguments.steps:,} environment steps: {left / 1024:+.1f} KiB (peak {peak / 1024:.1f} KiB above)"
    )
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            json.dump({"rows": rows, "growth": grown, "bytes_left": left, "bytes_peak": peak}, file, indent=1)


if __name__ == "__main__":
    main()
