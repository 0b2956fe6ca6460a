"""Stage 2: raters compare the candidates; every judgement is in the store before the next is asked for."""

from __future__ import annotations

import numpy as np

from rlhf_gym.feedback import FeedbackStore, Query
from rlhf_gym.loop.plugins import find_rater
from rlhf_gym.loop.sample import read_samples
from rlhf_gym.loop.workbench import Workbench
from rlhf_gym.raters import ask
from rlhf_gym.rewards.base import score
from rlhf_gym.sample import Sample


def label(bench: Workbench, number: int) -> None:
    """Ask the rater about a round's candidates; what is answered already is not asked again.

    Raises:
        FeedbackError: the rater cannot go on, or the store cannot be written; what was answered is stored.
    """
    settings = bench.config.rater
    queries = queries_of(read_samples(bench, number), bench.config.sampling.candidates, settings.form, number)
    rater = find_rater(settings, bench.gold, reference_rewards(bench), bench.seed(number, "label"))
    with (
        bench.progress.stage(f"round {number} labels", len(queries)) as bar,
        FeedbackStore(bench.run.store_file) as store,
    ):
        # By batches, so that a simulated rater's answers too are stored and shown as they come.
        for begin in range(0, len(queries), settings.batch_size):
            batch = queries[begin : begin + settings.batch_size]
            ask(rater, batch, store, on_progress=lambda done, _, begin=begin: bar.update(begin + done))  # type: ignore[misc]
        count = store.count(number)
    if count.skipped or count.ties:
        bench.progress.say(f"{count.skipped} of {count.queries} queries were skipped, {count.ties} called a tie")


def queries_of(samples: list[Sample], candidates: int, form: str, number: int) -> list[Query]:
    """A query a prompt for rankings; for pairs, a query for each two candidates of a prompt.

    Args:
        samples: the round's, ``candidates`` a prompt.
        candidates: responses to each prompt.
        form: ``"ranking"`` or ``"pair"``.
        number: the round.
    """
    writer = "reference" if number == 1 else f"round-{number - 1}"
    size = candidates if form == "ranking" else 2
    groups = [samples[i : i + size] for i in range(0, len(samples), size)]
    return [
        Query(
            prompt=group[0].prompt.text, responses=tuple(s.response for s in group), form=form,  # type: ignore[arg-type]
            columns=group[0].prompt.columns, model_versions=(writer,) * size, round=number, index=index,
        )
        for index, group in enumerate(groups)
    ]  # fmt: skip


def reference_rewards(bench: Workbench) -> np.ndarray:
    """Gold rewards ``[prompts, candidates]`` of the reference's own samples (round 1), which rater presets are scaled by."""
    samples = read_samples(bench, 1)
    names = {name: None for s in samples for name in s.prompt.columns}
    columns = {name: [s.prompt.columns.get(name) for s in samples] for name in names}
    scored = score(bench.gold, [s.prompt.text for s in samples], [s.response for s in samples], columns)
    return scored.values.reshape(-1, bench.config.sampling.candidates)
