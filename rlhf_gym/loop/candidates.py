"""Stage 1: the policy generates the candidates that raters compare."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.lm.decoding import generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.conversations import conversation_lines, whole_groups
from rlhf_gym.loop.whole_files import write_text
from rlhf_gym.tasks.samples import Prompt, Sample


def sample(context: RunContext, number: int) -> None:
    """Generate ``round-N/samples.jsonl``: ``candidates`` responses to each of ``prompts`` prompts, prompt by prompt.

    Of a task that is a conversation, ``candidates`` conversations from each of ``prompts`` openings.

    A run that was killed meanwhile goes on after the last whole batch. The random numbers of a response depend only on the
    seed and on its position in the file. A file that is complete already stays as it is.

    Args:
        context: the run.
        number: the round, from 1; the policy of the round before generates.
    """
    settings = context.config.sampling
    file = context.run.round(number) / "samples.jsonl"
    part = file.with_name("samples.jsonl.part")
    if file.exists():
        return
    policy = context.policy(number - 1)
    wanted, size = settings.prompts * settings.candidates, settings.batch_size
    if context.task.conversation is not None:
        size = whole_groups(size, settings.candidates)
        lines: Callable[[range], Iterator[dict[str, Any]]] = partial(conversation_lines, context, number, policy)
    else:
        lines = _response_lines(context, number, policy)
    written = _keep_whole_batches(part, size)
    with (
        context.progress.stage(f"round {number} samples", wanted) as bar,
        part.open("a", encoding="ascii", newline="\n") as out,
    ):
        for begin in range(written, wanted, size):
            bar.update(begin)
            for line in lines(range(begin, min(begin + size, wanted))):
                out.write(json.dumps(line) + "\n")
            out.flush()
            os.fsync(out.fileno())
        bar.update(wanted)
    os.replace(part, file)


def _response_lines(
    context: RunContext, number: int, policy: LanguageModel
) -> Callable[[range], Iterator[dict[str, Any]]]:
    """What generates the responses of some numbers, as lines of the file.

    Args:
        context: the run.
        number: the round.
        policy: generates them.
    """
    prompts = [p for p in round_prompts(context, number) for _ in range(context.config.sampling.candidates)]
    ids = {id(p): context.prompt_ids(p) for p in prompts}  # a prompt's object stands there once for each candidate

    def lines(numbers: range) -> Iterator[dict[str, Any]]:
        batch = [prompts[i] for i in numbers]
        responses = generate(
            policy, [ids[id(p)] for p in batch], context.limits, sampling=context.sampling, stop=context.task.stop,
            seed=context.seed(number, "sample"), first_episode=numbers[0],
            batch_size=context.config.sampling.batch_size,
        )  # fmt: skip
        for prompt, response in zip(batch, responses, strict=True):
            yield {
                "prompt": prompt.text, "response": response.text, "columns": dict(prompt.columns),
                "prompt_ids": ids[id(prompt)], "response_ids": response.ids, "ended": response.ended,
            }  # fmt: skip

    return lines


def round_prompts(context: RunContext, number: int) -> list[Prompt]:
    """The prompts of a round: the task's prompts in a random order, each used once before any is used again.

    Args:
        context: the run.
        number: the round, from 1.
    """
    prompts, wanted = context.task.prompts, context.config.sampling.prompts
    first, last = (number - 1) * wanted, number * wanted
    chosen: list[Prompt] = []
    for cycle in range(first // len(prompts), (last - 1) // len(prompts) + 1):
        order = np.random.default_rng((context.config.run.seed, cycle)).permutation(len(prompts))
        start = cycle * len(prompts)
        chosen += [prompts[i] for i in order[max(0, first - start) : last - start]]
    return chosen


def read_samples(context: RunContext, number: int) -> list[Sample]:
    """The candidates of a round, in the order of generation.

    Args:
        context: the run.
        number: the round, from 1.
    """
    lines = (context.run.round(number) / "samples.jsonl").read_text(encoding="ascii").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        Sample(
            Prompt(row["prompt"], row["columns"]), row["response"], tuple(row["prompt_ids"]), tuple(row["response_ids"]),
            row["ended"], row.get("paid"),
        )
        for row in rows
    ]  # fmt: skip


def _keep_whole_batches(part: Path, size: int) -> int:
    """Cut an interrupted file after its last whole batch, and return the number of lines that are left.

    Batches must hold the same rows as in a run without interruption: only then are floats rounded alike.
    """
    if not part.exists():
        return 0
    lines = part.read_text(encoding="ascii").split("\n")[:-1]
    kept = len(lines) // size * size
    write_text(part, "".join(f"{line}\n" for line in lines[:kept]))
    return kept
