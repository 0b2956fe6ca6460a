"""TRL's trainers as contenders: same task, model, prompts, reward, limits and budget, in a process of their own.

The process may be another Python's (``python``), for another version of TRL than the one installed here. TRL 1.16 has no PPO
trainer any more, so that there is no contender for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rlhf_gym.bench.contender import Bench, CurvePoint, Trained, write_whole
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.language_model import LanguageModel


@dataclass
class TRLContender:
    """One of TRL's trainers.

    Args:
        learning_rate: falls linearly over the budget, as that of our agents does.
        batch_size: responses in a minibatch.
        n_episodes: responses in a rollout.
        n_epochs: passes over a rollout.
        group_size: responses to a prompt.
        kl_coef: TRL's ``beta``.
        python: the Python that runs the trainer; empty for this one.
        config: further fields of the trainer's configuration, by TRL's names.
    """

    trainer: ClassVar[str]

    learning_rate: float = 1e-4
    batch_size: int = 16
    n_episodes: int = 64
    n_epochs: int = 1
    group_size: int = 8
    kl_coef: float = 0.0
    python: str = ""
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n_episodes % self.batch_size or self.batch_size % self.group_size:
            raise ConfigError(
                f"{self.trainer}: group_size ({self.group_size}) must divide batch_size ({self.batch_size}), which must divide "
                f"n_episodes ({self.n_episodes})"
            )

    def train(self, bench: Bench) -> Trained:
        """Train in a process of its own.

        Raises:
            ConfigError: TRL is missing, lacks this trainer, or ended with an error.
        """
        target = bench.folder / "trained"
        spec = {
            "trainer": self.trainer, "cell": bench.cell.as_json(), "run": str(bench.context.run.path.resolve()),
            "start": str(bench.start_folder.resolve()), "target": str(target.resolve()), "seed": bench.seed,
            "learning_rate": self.learning_rate, "batch_size": self.batch_size, "n_episodes": self.n_episodes,
            "n_epochs": self.n_epochs, "group_size": self.group_size, "kl_coef": self.kl_coef, "config": self.config,
        }  # fmt: skip
        write_whole(bench.folder / "trl.json", spec)
        environment = {**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1"}
        command = [self.python or sys.executable, "-m", "rlhf_gym.bench.trl_process", str(bench.folder / "trl.json")]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        with process:  # its standard input stays open as long as this process is there
            assert process.stdout is not None
            printed = process.stdout.read()
        bench.say(printed)
        if process.returncode:
            raise ConfigError(f"TRL's {self.trainer} ended with an error: {_last_line(printed)}")
        found = json.loads((target / "outcome.json").read_text(encoding="utf-8"))
        policy = LanguageModel.load(str(target), device=str(bench.start.device), tokenizer=bench.start.tokenizer)
        curve = [CurvePoint(*point) for point in found["curve"]]
        return Trained(policy=policy, tokens=found["tokens"], optimizer_steps=found["optimizer_steps"], curve=curve)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")


class TRLGRPO(TRLContender):
    """TRL's GRPOTrainer."""

    trainer = "GRPO"


class TRLRLOO(TRLContender):
    """TRL's RLOOTrainer."""

    trainer = "RLOO"
