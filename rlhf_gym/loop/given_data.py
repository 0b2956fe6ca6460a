"""What agents learn from that do not generate: responses and preferences of a run, a store or a file, and a task of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_gym.agents.common.given_responses import prompt_text
from rlhf_gym.errors import ConfigError, FeedbackError, TaskError
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.feedback.exchange.files import import_feedback
from rlhf_gym.feedback.exchange.record_files import read_records
from rlhf_gym.feedback.preferences import demonstration_from, preferences_from, preferences_of
from rlhf_gym.feedback.purposes import to_learn_from
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.lm.chat_template import Messages, messages_before
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.tokenizer import encode_conversation, encode_response
from rlhf_gym.loop.config import AgentConfig, TaskConfig
from rlhf_gym.loop.run_task import split_prompts
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt

DATA_TASK = "data"
"""The name of the task whose prompts are those of ``agent.data``."""
EXAMPLE_COLUMNS = ("completion", "response", "target", "answer", "output")
"""Columns that hold the response in a file of examples, which compares nothing; the first that a file has counts."""


@dataclass(frozen=True)
class Given:
    """One row to learn from.

    Attributes:
        prompt: its text.
        chosen: the response to imitate or to prefer; None where only a bad one is known.
        rejected: the worse response; None where there is none.
        messages: the prompt as chat messages, where it is a conversation.
    """

    prompt: str
    chosen: str | None
    rejected: str | None = None
    messages: Messages | None = field(default=None, compare=False, hash=False)

    @property
    def asked(self) -> str | Messages:
        """The prompt as agents take it: messages where there are some."""
        return messages_before(self.messages) or self.prompt

    @property
    def responses(self) -> list[str]:
        """The responses that there are."""
        return [text for text in (self.chosen, self.rejected) if text is not None]


@dataclass(frozen=True)
class GivenData:
    """Rows to learn from, rows of other prompts to measure on, and what was left out.

    Attributes:
        train: rows to learn from.
        held_out: rows whose prompts are not learned from.
        source: where they come from, in words.
        dropped: number of records that were left out, by reason.
    """

    train: Sequence[Given]
    held_out: Sequence[Given]
    source: str
    dropped: Counter[str]

    def __str__(self) -> str:
        left_out = ", ".join(f"{number} {reason}" for reason, number in self.dropped.items())
        rows = f"{len(self.train)} rows of {self.source} to learn from, {len(self.held_out)} held out"
        return rows + (f"; left out: {left_out}" if left_out else "")

    def fitting(self, model: LanguageModel, max_new_tokens: int) -> GivenData:
        """Leave out rows whose prompts leave no room for a response, and count them, and the responses that will be cut.

        Args:
            model: its context must hold prompt and response.
            max_new_tokens: the length limit of a response.

        Raises:
            ConfigError: nothing is left to learn from.
        """
        room = model.context_length - max_new_tokens
        train, held_out = (
            [row for row in rows if len(encode_conversation(model.tokenizer, row.prompt, row.messages)) <= room]
            for rows in (self.train, self.held_out)
        )
        dropped = Counter(self.dropped)
        dropped["prompts too long for the model's context"] += len(self.train) + len(self.held_out)
        dropped["prompts too long for the model's context"] -= len(train) + len(held_out)
        if not train or not held_out:
            raise ConfigError(
                f"the prompts in {self.source} are too long: {model.name!r} (context of {model.context_length} tokens) takes "
                f"prompts of at most {max(room, 0)} with responses of up to {max_new_tokens}, and none is left to "
                f"{'hold out' if train else 'learn from'}; lower task.max_new_tokens, or give a model with a longer context"
            )
        cut = sum(
            len(encode_response(model.tokenizer, text)) >= max_new_tokens for row in train for text in row.responses
        )
        source = self.source + (f" ({cut} responses cut at {max_new_tokens} tokens)" if cut else "")
        return GivenData(train, held_out, source, +dropped)

    def for_agent(self, rows: Sequence[Given], argument: str) -> list[Any]:
        """Rows as an agent takes them.

        Args:
            rows: some of the rows.
            argument: ``data`` for pairs ``(prompt, response)``, ``preferences`` for triples ``(prompt, chosen, rejected)``.
        """
        if argument == "data":
            return [(row.asked, row.chosen) for row in rows]
        return [(row.asked, row.chosen, row.rejected) for row in rows]


class Unscored:
    """Stands for the reward of a task that has none: nothing is scored by it."""

    name = "unscored"

    def __call__(self, prompts: list[str], responses: list[str], /, **columns: Any) -> list[float]:
        """Refuse to score.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("the prompts have no reward of their own to score responses by; give one: --reward REWARD")


def read_given(config: AgentConfig, argument: str, held_out_fraction: float) -> GivenData:
    """Read what an agent is to learn from, split by prompt.

    Args:
        config: names the data, and the loss.
        argument: ``data`` to imitate responses, ``preferences`` to compare them.
        held_out_fraction: share of the different prompts to hold out.

    Raises:
        ConfigError: there is no such data.
        FeedbackError: a file that cannot be read, or that holds nothing to learn from.
    """
    assert config.data is not None
    dropped: Counter[str] = Counter()
    examples = _examples(config.data, dropped) if argument == "data" and config.data_format == "auto" else None
    if examples is None:
        answers, source = read_answers(config.data, config.data_format, dropped)
        single = config.settings.get("loss") == "kto"
        rows = list(_demonstrated(answers) if argument == "data" else _preferred(answers, dropped, single=single))
    else:
        rows, source = examples, config.data
    different = list(dict.fromkeys(rows))
    if len(different) < len(rows):
        dropped["repeated rows"] += len(rows) - len(different)
    if not different:
        wanted = "a response to imitate" if argument == "data" else "one response preferred to another"
        reasons = "".join(f", {number} {reason}" for reason, number in (+dropped).items())
        raise FeedbackError(f"{source} holds nothing to learn from: there is not {wanted} in it{reasons}")
    _, held_out = split_prompts([Prompt(row.prompt) for row in different], held_out_fraction, source)
    held = {prompt.text for prompt in held_out}
    train, rest = ([row for row in different if (row.prompt in held) is side] for side in (False, True))
    return GivenData(train, rest, source, +dropped)


def read_answers(
    data: str,
    format: str,  # noqa: A002
    dropped: Counter[str],
) -> tuple[list[tuple[Query, Judgement]], str]:
    """Read judgements with their queries, but for skips and answers to check questions, which measure people.

    Args:
        data: a run's directory, a feedback store (a file, or a database's URL), or a file that the importer reads.
        format: the file's exchange format; ``auto`` finds it.
        dropped: counts what is left out, by reason.

    Returns:
        The answers, and where they come from, in words.

    Raises:
        ConfigError: there is nothing, or the format does not go with the data.
        FeedbackError: a file that cannot be read.
    """
    path = Path(data)
    if "://" not in data and not path.exists():
        raise ConfigError(f"there is no run, store or file {data!r}")
    if path.is_dir() and not (path / "config.yaml").exists():
        raise ConfigError(f"{data} is a folder without a run in it; give a run's directory, a store or a file")
    if "://" in data or path.is_dir() or _is_store(path):
        if format != "auto":
            raise ConfigError(f"the format {format} does not go with a feedback store ({data}): leave it out")
        store, source = (
            (str(path / "feedback.sqlite"), f"the run {data}") if path.is_dir() else (data, f"the store {data}")
        )
        if path.is_dir() and not Path(store).exists():
            raise ConfigError(f"the run {data} has asked nobody yet: there is no feedback in it")
        with FeedbackStore(store, read_only=True) as opened:
            answers = list(opened.answers())
    else:
        found = import_feedback(path, format)
        dropped.update(found.dropped)
        by_id = {query.id: query for query in found.queries}
        answers, source = [(by_id[j.query_id], j) for j in found.judgements], f"{data} (format {found.format})"
    given = [answer for answer in answers if not answer[1].skipped]
    kept = to_learn_from(given)
    dropped["skips"] += len(answers) - len(given)
    dropped["answers to check questions, practice and repetitions"] += len(given) - len(kept)
    return kept, source


def data_task(config: TaskConfig, given: GivenData, model: LanguageModel) -> tuple[Task, GivenData]:
    """The task ``data``: the prompts of the rows, without a reward; and the rows that fit in the model's context.

    Args:
        config: its limits; without a ``max_new_tokens`` the longest response fits, but in half the context at most.
        given: the rows.
        model: its tokenizer counts tokens.

    Raises:
        TaskError: settings that belong to other tasks.
    """
    if config.prompts is not None or config.held_out is not None or config.options:
        raise TaskError(
            "task data has the prompts of agent.data: leave out task.prompts, task.held_out and task.options"
        )
    longest = config.max_new_tokens
    if longest is None:
        texts = {text for row in (*given.train, *given.held_out) for text in row.responses}
        longest = min(max(len(encode_response(model.tokenizer, text)) for text in texts) + 1, model.context_length // 2)
    fits = given.fitting(model, longest)
    task = Task(
        DATA_TASK, _prompts(fits.train), _prompts(fits.held_out), max_new_tokens=longest,
        min_new_tokens=config.min_new_tokens or 0, stop=config.stop or (),
    )  # fmt: skip
    return task, fits


def _prompts(rows: Sequence[Given]) -> list[Prompt]:
    by_text = {row.prompt: Prompt(row.prompt, {"messages": row.messages} if row.messages else {}) for row in rows}
    return list(by_text.values())


def _preferred(answers: Sequence[tuple[Query, Judgement]], dropped: Counter[str], *, single: bool) -> Iterable[Given]:
    """Every pair that judgements order; with ``single`` a response called good or bad is a row by itself, too."""
    alone = [(query, good) for query, judgement in answers if (good := _called_good(query, judgement)) is not None]
    if single:
        for query, good in alone:
            (response,) = query.responses
            yield Given(
                query.prompt, response if good else None, None if good else response, query.columns.get("messages")
            )
    compared = set()
    for p in preferences_of(a for a in answers if not single or _called_good(*a) is None):
        compared |= {(p.prompt, p.chosen), (p.prompt, p.rejected)}
        if p.tie or p.chosen == p.rejected:
            dropped["ties" if p.tie else "pairs of equal responses"] += 1
        else:
            yield Given(p.prompt, p.chosen, p.rejected, p.messages)
    if not single and (number := sum((query.prompt, query.responses[0]) not in compared for query, _ in alone)):
        dropped["responses that no other is compared with (loss kto learns from them)"] += number


def _demonstrated(answers: Iterable[tuple[Query, Judgement]]) -> Iterable[Given]:
    """Responses to imitate: examples that people wrote or accepted, thumbs up, and what was preferred to all others."""
    for query, judgement in answers:
        messages = query.columns.get("messages")
        if (example := demonstration_from(query, judgement)) is not None:
            yield Given(query.prompt, example.response, None, messages)
        elif (good := _called_good(query, judgement)) is not None:
            if good:
                yield Given(query.prompt, query.responses[0], None, messages)
        elif query.query_type != "edit":
            pairs = [p for p in preferences_from(query, judgement) if not p.tie]
            worse = {p.rejected for p in pairs}
            for best in dict.fromkeys(p.chosen for p in pairs if p.chosen not in worse):
                yield Given(query.prompt, best, None, messages)


def _called_good(query: Query, judgement: Judgement) -> bool | None:
    """What a judgement says of a single response, by a thumb or by ratings of 0 or 1; None where it says neither."""
    values = [value for column in (judgement.ratings or {}).values() for value in column]
    if (
        len(query.responses) != 1
        or query.query_type not in ("thumbs", "rating")
        or not set(values) <= {0, 1}
        or not values
    ):
        return None
    return sum(value or 0 for value in values) * 2 > len(values)


def _examples(data: str, dropped: Counter[str]) -> list[Given] | None:
    """The rows of a file of prompts with responses; None for a store, and for a file that compares responses."""
    path = Path(data)
    if "://" in data or not path.is_file() or _is_store(path):
        return None
    rows: list[Given] = []
    column = ""
    for number, record in enumerate(read_records(path)):
        if number == 0:
            known = [name for name in EXAMPLE_COLUMNS if isinstance(record.get(name), str)]
            if not known or "prompt" not in record or "label" in record or "chosen" in record:
                return None
            column = known[0]
        prompt, response = record.get("prompt"), record.get(column)
        messages = messages_before(prompt)
        if not isinstance(response, str) or not (isinstance(prompt, str) or messages):
            dropped["rows without a prompt or a response"] += 1
            continue
        rows.append(Given(prompt if isinstance(prompt, str) else prompt_text(messages or ()), response, None, messages))
    return rows


def _is_store(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\x00"
