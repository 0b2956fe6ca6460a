"""Measures PPO with all weights and with a LoRA adapter: memory, checkpoint and time, with either kind of value network.

    python benchmarks/speed/lora.py                       # random GPT-2 of 124M parameters: some minutes, 4 GB
    python benchmarks/speed/lora.py --width 64 --layers 2

Each variant runs in a process of its own. ``held``: bytes of all tensors that an agent holds after learning (policy, reference,
value network, Adam's moments), each storage counted once. ``peak``: the process's largest resident memory, less that before
the model was made. ``checkpoint``: the saved agent's size. ``seconds``: CPU time of an iteration, median.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_gym.agents import PPO
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.tokenizer import load_tokenizer

VARIANTS = [(lora, network) for network in ("shared", "separate") for lora in (None, {"rank": 8})]


def held_bytes(agent: PPO) -> int:
    """Bytes of all tensors that an agent holds."""
    tensors: list[Any] = [*agent.policy.parameters(), *agent.reference.model.parameters()]
    tensors += [t for state in agent.policy.optimizer.state.values() for t in state.values()]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def peak_bytes() -> int:
    """The largest resident memory of this process so far (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(width: int, layers: int, episodes: int, iterations: int, variant: int) -> dict[str, Any]:
    """Measure one variant, in this process."""
    torch.set_num_threads(1)
    lora, network = VARIANTS[variant]
    tokenizer = load_tokenizer("embedded")
    env = make_sb3_env(episodes, seed=0, task="sentiment", tokenizer=tokenizer)
    env.reset()
    before = peak_bytes()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=128, n_embd=width, n_layer=layers, n_head=max(1, width // 64),
        bos_token_id=tokenizer.eos_id, eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    model = LanguageModel(GPT2LMHeadModel(config), tokenizer, "random")
    agent = PPO(env=env, language_model=model, lora=lora, value_network=network, seed=0, batch_size=episodes)
    seconds = []
    for _ in range(iterations):
        began = time.process_time()
        agent.learn(1, reset_num_timesteps=False)
        seconds.append(time.process_time() - began)
    held, peak = held_bytes(agent), peak_bytes() - before
    with tempfile.TemporaryDirectory() as folder:
        agent.save(Path(folder) / "agent")
        checkpoint = (Path(folder) / "agent.zip").stat().st_size
    learned = sum(p.numel() for p in agent.policy.parameters() if p.requires_grad)
    return {
        "lora": lora, "value_network": network, "weights": sum(p.numel() for p in model.model.parameters()),
        "learned": learned, "held": held, "peak": peak, "checkpoint": checkpoint, "seconds": median(seconds),
    }  # fmt: skip


def main() -> None:
    """Measure all variants, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--episodes", type=int, default=16, help="responses an iteration")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--variant", type=int, help="only this one, as JSON")
    options = vars(parser.parse_args())
    if options["variant"] is not None:
        print(json.dumps(measure(**options)))
        return
    print("| learns | value network | weights learned | held, MB | peak, MB | checkpoint, MB | CPU s an iteration |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for variant in range(len(VARIANTS)):
        flags = [f"--{name}={value}" for name, value in options.items() if name != "variant"]
        command = [sys.executable, __file__, *flags, f"--variant={variant}"]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        sizes = " | ".join(f"{row[key] / 1e6:.1f}" for key in ("held", "peak", "checkpoint"))
        learns = "all weights" if row["lora"] is None else f"LoRA, rank {row['lora']['rank']}"
        print(
            f"| {learns} | {row['value_network']} | {row['learned']:,} | {sizes} | {row['seconds']:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
