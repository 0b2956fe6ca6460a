"""Compares the memory that `rlhf-gym plan` promises with the peak of a process that trains for two iterations.

    python benchmarks/speed/memory.py                       # all cases; the largest takes about 12 GiB
    python benchmarks/speed/memory.py --only "4M" "135M, LoRA"

Models are built from configurations, with random weights. Columns: MiB at the plan's peak; MiB of the process's largest
resident memory; the plan over the measurement.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROMPT, RESPONSE, EPISODES = 16, 48, 16

SIZES: dict[str, dict[str, int]] = {
    "4M": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4},
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 49152},
    "500M": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
             "vocab_size": 49152},
    "4M, V = 150k": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                     "vocab_size": 150_000},
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "4M": ("4M", {}),
    "4M, V = 150k": ("4M, V = 150k", {}),
    "135M": ("135M", {}),
    "135M, bf16": ("135M", {"precision": "bf16"}),
    "135M, gradient checkpointing": ("135M", {"gradient_checkpointing": True}),
    "135M, 8-bit optimizer": ("135M", {"optimizer": "adamw_8bit"}),
    "135M, LoRA": ("135M", {"lora": {"rank": 8}}),
    "135M, LoRA on 4 bits": ("135M", {"lora": {"rank": 8}, "quantization": "nf4"}),
    "500M, LoRA": ("500M", {"lora": {"rank": 8}}),
    "500M, LoRA on 4 bits": ("500M", {"lora": {"rank": 8}, "quantization": "nf4"}),
    "500M": ("500M", {}),
}


def build(size: str, folder: Path) -> None:
    """Write a model of this size with a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    shape = {"vocab_size": 2048, **SIZES[size]}
    words = {"<eos>": 0, "<pad>": 1, **{f"w{i}": i for i in range(2, shape["vocab_size"])}}
    tokens = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = LlamaConfig(**shape, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=1)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<eos>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)


def train(folder: str, options: dict[str, Any]) -> None:
    """Train for two iterations, and print the process's largest resident memory in MiB."""
    import torch

    from rlhf_gym.agents import PPO
    from rlhf_gym.envs import make_sb3_env
    from rlhf_gym.lm.language_model import LanguageModel
    from rlhf_gym.tasks import Task
    from rlhf_gym.tasks.samples import Prompt

    torch.set_num_threads(1)
    model = LanguageModel.load(folder, device="cpu", quantization=options.pop("quantization", None))
    prompts = [Prompt(" ".join(f"w{2 + i * PROMPT + k}" for k in range(PROMPT))) for i in range(EPISODES)]
    task = Task(
        "memory", prompts, reward=lambda prompts, responses: [float(len(r) % 2) for r in responses],
        max_new_tokens=RESPONSE, min_new_tokens=RESPONSE,
    )  # fmt: skip
    env = make_sb3_env(EPISODES, task=task, tokenizer=model.tokenizer, seed=0)
    agent = PPO("LMPolicy", env, language_model=model, n_epochs=1, batch_size=EPISODES, seed=0, device="cpu", **options)
    agent.learn(1, iterations=2)
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def planned(folder: str, options: dict[str, Any]) -> float:
    """MiB at the peak, as `rlhf-gym plan` says."""
    from rlhf_gym.loop.config_file import build as build_config
    from rlhf_gym.loop.memory_plan import plan_memory

    of_the_model = {name: options.pop(name) for name in ("lora", "quantization") if name in options}
    settings = {
        "model": {"name": folder, "device": "cpu", **of_the_model},
        "agent": {"name": "ppo", "n_episodes": EPISODES, "batch_size": EPISODES, **options},
        "reward_model": {"enabled": False},
    }
    plan = plan_memory(build_config(settings), prompt_tokens=PROMPT, response_tokens=RESPONSE)
    return plan.peak / 2**20


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="cases")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        task, folder, options = arguments.work
        if task == "train":
            train(folder, json.loads(options))
        else:
            print(json.dumps(planned(folder, json.loads(options))))
        return
    print("| case | planned | measured | planned / measured |\n| --- | --- | --- | --- |")
    for case in arguments.only:
        size, options = CASES[case]
        with tempfile.TemporaryDirectory() as folder:
            build(size, Path(folder))
            ours = [sys.executable, __file__, "--work"]
            got = [
                json.loads(
                    subprocess.run(
                        [*ours, task, folder, json.dumps(options)], check=True, capture_output=True, text=True
                    ).stdout.splitlines()[-1]
                )
                for task in ("plan", "train")
            ]
        print(f"| {case} | {got[0]:.0f} | {got[1]:.0f} | {got[0] / got[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
