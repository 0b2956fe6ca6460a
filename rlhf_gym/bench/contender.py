"""What a contender is given, and what it gives back; a contender of one's own is a class with ``train(bench)``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rlhf_gym.bench.cells import Cell
from rlhf_gym.lm.decoding import Generation
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.whole_files import whole_folder
from rlhf_gym.rewards.base import Reward
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt, columns_of


@dataclass(frozen=True)
class CurvePoint:
    """A moment of training.

    Attributes:
        tokens: tokens generated so far.
        reward: mean gold reward of the responses since the last point.
        kl: nats a response from the start model; None where nobody measured it.
    """

    tokens: int
    reward: float
    kl: float | None = None


@dataclass(frozen=True)
class Trained:
    """What a contender has made of its budget: a policy, or a function that responds.

    Attributes:
        policy: a language model; its responses are sampled as everybody's.
        respond: responses to prompts, from a seed, for a contender that has no language model of its own.
        kl: nats a response from the start model, where a formula gives it and it cannot be measured.
        tokens: tokens generated for training.
        optimizer_steps: steps of its optimizer.
        curve: its learning curve.
    """

    policy: LanguageModel | None = None
    respond: Callable[[Sequence[Prompt], int], list[Generation]] | None = None
    kl: float | None = None
    tokens: int = 0
    optimizer_steps: int = 0
    curve: list[CurvePoint] = field(default_factory=list)


class Contender(Protocol):
    """A contender. Its constructor takes the settings of the suite as keywords."""

    def train(self, bench: Bench) -> Trained:
        """Use the budget; the prompts of ``bench.task.held_out`` are not to be looked at."""


@dataclass(frozen=True)
class Bench:
    """One run, as a contender sees it.

    Attributes:
        cell: the contender, the problem, the seed, the budget.
        context: task, gold reward, start model, limits and seeds of an ordinary run.
        folder: for files of the contender's own; what is in it is kept when a killed run goes on.
    """

    cell: Cell
    context: RunContext
    folder: Path

    @property
    def task(self) -> Task:
        """The task: its ``prompts`` are those to train on."""
        return self.context.task

    @property
    def reward(self) -> Reward:
        """The reward to train against: the run's reward model, or the gold reward without one."""
        return self.context.proxy(1)

    @property
    def start(self) -> LanguageModel:
        """The frozen model that everybody starts from, and that KL is measured from."""
        return self.context.reference

    def trainable(self) -> LanguageModel:
        """A copy of the start model to train."""
        model = self.start.frozen_copy()
        model.unfreeze()
        return model

    @property
    def start_folder(self) -> Path:
        """The start model as a folder in Hugging Face's format, for trainers from outside."""
        target = self.folder / "start"
        if not (target / "config.json").exists():
            with whole_folder(target) as part:
                self.start.save(part)
        return target

    @property
    def seed(self) -> int:
        """A seed of training, derived from the run's."""
        return self.context.seed(1, "train")

    @property
    def tokens(self) -> int:
        """The budget in generated tokens; where steps are held equal, as many as one may need, so that steps decide."""
        return self.cell.budget if self.cell.equal == "tokens" else 2**62

    @property
    def optimizer_steps(self) -> int:
        """The budget in optimizer steps; where tokens are held equal, so many that tokens decide."""
        return self.cell.budget if self.cell.equal == "optimizer_steps" else 2**62

    def ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The ids that responses to some prompts start from."""
        return [self.context.prompt_ids(prompt) for prompt in prompts]

    def columns(self, prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
        """The columns of some prompts, as rewards take them."""
        return columns_of(prompts)

    def say(self, line: str) -> None:
        """Write a line to the run's log, at once."""
        print(line, flush=True)


def write_whole(path: Path, value: Any) -> None:
    """Write a JSON file that is there whole or not at all.

    Args:
        path: the file.
        value: what to write.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
