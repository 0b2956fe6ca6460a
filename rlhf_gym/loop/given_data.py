"""What agents learn from that do not generate: responses, preferences, rewards of a run, a store or a file; a task of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rlhf_gym.agents.common.given_pairs import encoded_pairs, encoded_preferences
from rlhf_gym.agents.common.given_trajectories import encoded_trajectories, is_reward
from rlhf_gym.errors import ConfigError, FeedbackError, TaskError
from rlhf_gym.feedback.exchange.incoming import renamed
from rlhf_gym.feedback.exchange.record_files import read_records
from rlhf_gym.feedback.exchange.transcripts import prompt_of_messages
from rlhf_gym.feedback.oddities import oddities
from rlhf_gym.feedback.preferences import (
    Preference,
    demonstration_from,
    judged_pairs,
    preferences_from,
    preferences_of,
)
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.lm.chat_template import SEVERAL_TURNS, Messages, messages_before
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.lm.tokenizer import encode_response
from rlhf_gym.loop.config import AgentConfig, TaskConfig
from rlhf_gym.loop.preference_data import READ_COLUMNS, is_store, read_data, remarks_on
from rlhf_gym.loop.run_task import split_prompts
from rlhf_gym.reward_model.batches import first_turn
from rlhf_gym.reward_model.ratings import ratings_of
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.tasks.too_long import OnTooLong, TooLong, fit_task

DATA_TASK = "data"
"""The name of the task whose prompts are those of ``agent.data``."""
EXAMPLE_COLUMNS = ("completion", "response", "target", "answer", "output")
"""Columns that hold the response in a file of examples, which compares nothing; the first that a file has counts."""
REWARD_COLUMNS = ("reward", "score", "rewards", "token_rewards")
"""Columns that hold a response's reward, a number or a list of one for each token; the first that a file has counts."""
_RATED = "responses that are imitated whatever their rating"
ENCODE: Mapping[str, Any] = {
    "data": encoded_pairs, "preferences": encoded_preferences, "trajectories": encoded_trajectories,
}  # fmt: skip
"""What encodes the rows of each argument."""
WANTED = {
    "data": "a response to imitate", "preferences": "one response preferred to another",
    "trajectories": f"a response with a reward (columns prompt, response and {', '.join(REWARD_COLUMNS[:-1])} or "
    f"{REWARD_COLUMNS[-1]}; or judgements)",
}  # fmt: skip
"""What the data of each argument must hold, in words."""


@dataclass(frozen=True, slots=True)
class Given:
    """One row to learn from.

    Attributes:
        prompt: its text.
        chosen: the response to imitate or to prefer, or one with a reward; None where only a bad one is known.
        rejected: the worse response; None where there is none.
        messages: the prompt as chat messages, where it is a conversation.
        reward: the reward of ``chosen``, or of each of its tokens; None where it has none.
    """

    prompt: str
    chosen: str | None
    rejected: str | None = None
    reward: float | tuple[float, ...] | None = None
    messages: Messages | None = field(default=None, compare=False, hash=False)

    @property
    def asked(self) -> str | Prompt:
        """The prompt as a text, or with its messages where there are some."""
        messages = messages_before(self.messages)
        return Prompt(self.prompt, {"messages": messages}) if messages else self.prompt

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
        noted: number of what was taken and is worth saying.
    """

    train: Sequence[Given]
    held_out: Sequence[Given]
    source: str
    dropped: Counter[str]
    noted: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = f"{len(self.train)} rows of {self.source} to learn from, {len(self.held_out)} held out"
        return f"{rows}; {self.remarks}" if self.remarks else rows

    @property
    def remarks(self) -> str:
        """What was left out, and what was taken all the same and is worth saying, in words; empty for nothing."""
        return remarks_on(self.dropped, self.noted)

    def fitting(
        self, model: LanguageModel, max_new_tokens: int, on_too_long: OnTooLong
    ) -> tuple[GivenData, list[TooLong]]:
        """The rows with prompts that leave room for a response in a model's context.

        Args:
            model: the model that learns them.
            max_new_tokens: the length limit of a response.
            on_too_long: what is done with prompts that are too long.

        Returns:
            The rows, and what was done with prompts that were too long.

        Raises:
            TaskError: some are to be refused, or nothing is left to learn from or to hold out.
        """

        def prompts(rows: Sequence[Given]) -> list[Prompt]:
            return [Prompt(row.prompt, {"messages": row.messages, "row": row}) for row in rows]

        def fitted(prompts: Sequence[Prompt]) -> list[Given]:
            return [
                replace(p.columns["row"], prompt=p.text, messages=messages_before(p.columns["messages"]))
                for p in prompts
            ]

        task = Task(self.source, prompts(self.train), prompts(self.held_out), max_new_tokens=max_new_tokens)
        task, found = fit_task(task, model, on_too_long)
        if not found:
            return self, []
        rows = GivenData(fitted(task.prompts), fitted(task.held_out), self.source, self.dropped, self.noted)
        return rows, [replace(one, what=f"{one.what} of the data") for one in found]

    def without(self, prompts: AbstractSet[str]) -> GivenData:
        """The data without the rows to learn from that have one of these prompts."""
        return replace(self, train=[row for row in self.train if row.prompt not in prompts])

    def for_agent(self, rows: Sequence[Given], argument: str) -> list[Any]:
        """Rows to encode, each with its prompt.

        Args:
            rows: some of the rows.
            argument: ``data`` for pairs ``(prompt, response)``, ``preferences`` for triples ``(prompt, chosen, rejected)``,
                ``trajectories`` for triples ``(prompt, response, reward)``.
        """
        if argument == "data":
            return [(row.asked, row.chosen) for row in rows]
        if argument == "trajectories":
            return [(row.asked, row.chosen, row.reward) for row in rows]
        return [(row.asked, row.chosen, row.rejected) for row in rows]


@dataclass(frozen=True)
class EncodedData:
    """What an agent learns from that does not generate, as token ids.

    Attributes:
        argument: the agent's argument that it is: ``data``, ``preferences`` or ``trajectories``.
        train: encoded pairs, preferences or trajectories to learn from.
        held_out: those to measure on; empty where the agent learns the task's targets.
    """

    argument: str
    train: Sequence[Any]
    held_out: Sequence[Any] = ()

    @classmethod
    def of(
        cls, argument: str, train: Sequence[Any], held_out: Sequence[Any], model: LanguageModel, limits: Limits,
        on_too_long: OnTooLong,
    ) -> tuple[EncodedData, list[TooLong]]:  # fmt: skip
        """Encode rows once, for everything that learns from them.

        Args:
            argument: the agent's argument.
            train: rows as the agent takes them.
            held_out: those to measure on.
            model: its tokenizer encodes them.
            limits: the environment's.
            on_too_long: what is done with those that do not fit in the model's context.

        Returns:
            The rows, and what was done with those that were too long.

        Raises:
            ConfigError: a response that the limits do not allow.
            ModelError: a row does not fit, or none is left.
        """
        encode = ENCODE[argument]
        learned, found = encode(train, model, limits, on_too_long)
        measured, more = encode(held_out, model, limits, on_too_long) if held_out else ([], [])
        more = [replace(one, what=f"held-out {one.what.removesuffix(' to learn')}") for one in more]
        return cls(argument, learned, measured), [*found, *more]


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
        argument: ``data`` to imitate responses, ``preferences`` to compare them, ``trajectories`` for their rewards.
        held_out_fraction: share of the different prompts to hold out; dialogues that begin alike stay together.

    Raises:
        ConfigError: there is no such data.
        FeedbackError: a file that cannot be read, or that holds nothing to learn from.
    """
    assert config.data is not None
    dropped, noted = Counter[str](), dict[str, int]()
    columns = config.data_columns
    examples = None
    if argument != "preferences" and config.data_format == "auto":
        examples = _examples(config.data, columns, dropped, noted, rewarded=argument == "trajectories")
    if examples is None:
        form = None if config.data_format == "auto" else config.data_format
        read = read_data(config.data, form, columns, keep=READ_COLUMNS)
        answers, source = read.answers, read.source
        if any(query.columns.get(SEVERAL_TURNS) for query, _ in answers):
            raise ConfigError(
                f"the judgements of {source} are on conversations of several turns, in which others' turns would be learned "
                "from as if they were the policy's: fit a reward model to them (`rlhf-gym fit-reward`)"
            )
        dropped.update(read.dropped)
        single = config.settings.get("loss") == "kto"
        if argument == "trajectories":
            rows = list(_rewarded(answers, dropped))
        else:
            rows = list(
                _demonstrated(answers, dropped) if argument == "data" else _preferred(answers, dropped, single=single)
            )
    else:
        rows, source, answers = examples, config.data, []
    different = list(dict.fromkeys(rows))
    if len(different) < len(rows):
        dropped["repeated rows"] += len(rows) - len(different)
    if not different:
        wanted = WANTED[argument]
        reasons = "".join(f", {number} {reason}" for reason, number in (+dropped).items())
        raise FeedbackError(f"{source} holds nothing to learn from: there is not {wanted} in it{reasons}")
    if len({row.prompt for row in different}) == 1:
        raise FeedbackError(
            f"the {len(different)} rows of {source} are all on one prompt, so none would be left to measure on: give rows on "
            "at least two"
        )
    several = len({first_turn(row.prompt) for row in different}) > 1
    parts = [first_turn(row.prompt) if several else row.prompt for row in different]
    held = {prompt.text for prompt in split_prompts([Prompt(part) for part in parts], held_out_fraction, source)[1]}
    train, rest = (
        [row for row, part in zip(different, parts, strict=True) if (part in held) is side] for side in (False, True)
    )
    pairs = (
        [p for p in preferences_of(answers) if p.chosen != p.rejected]
        if argument == "data"
        else [
            Preference(row.prompt, row.chosen, row.rejected)
            for row in different
            if row.chosen is not None and row.rejected is not None
        ]
    )
    for kind, side in (("good", "rejected"), ("bad", "chosen")):
        if argument == "preferences" and all(getattr(row, side) is None for row in different):
            noted[f"responses that are all called {kind}: one class says nothing of what is better"] = len(different)
    return GivenData(train, rest, source, +dropped, noted | oddities(pairs))


def data_task(config: TaskConfig, given: GivenData, model: LanguageModel) -> tuple[Task, GivenData, list[TooLong]]:
    """The task ``data``: the prompts of the rows, without a reward; and the rows that fit in the model's context.

    Args:
        config: its limits; without a ``max_new_tokens`` the longest response fits, but in half the context at most.
        given: the rows.
        model: its tokenizer counts tokens.

    Returns:
        The task, the rows, and what was done with prompts that were too long.

    Raises:
        TaskError: settings that belong to other tasks; or prompts that are too long, and are to be refused.
    """
    if config.prompts is not None or config.held_out is not None or config.options:
        raise TaskError(
            "task data has the prompts of agent.data: leave out task.prompts, task.held_out and task.options"
        )
    longest = config.max_new_tokens
    if longest is None:
        texts = {text for row in (*given.train, *given.held_out) for text in row.responses}
        longest = min(max(len(encode_response(model.tokenizer, text)) for text in texts) + 1, model.context_length // 2)
    given, found = given.fitting(model, longest, config.on_too_long)
    task = Task(
        DATA_TASK, _prompts(given.train), _prompts(given.held_out), max_new_tokens=longest,
        min_new_tokens=config.min_new_tokens or 0, stop=config.stop or (),
    )  # fmt: skip
    return task, given, found


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
                query.prompt,
                response if good else None,
                None if good else response,
                messages=query.columns.get("messages"),
            )
    compared = set()
    for p in preferences_of(a for a in answers if not single or _called_good(*a) is None):
        compared |= {(p.prompt, p.chosen), (p.prompt, p.rejected)}
        if p.tie or p.chosen == p.rejected:
            dropped["ties" if p.tie else "pairs of equal responses"] += 1
        else:
            yield Given(p.prompt, p.chosen, p.rejected, messages=p.messages)
    rated = sum(
        query.query_type == "rating" and _called_good(query, said) is None and not judged_pairs(query, said)
        for query, said in answers
    )
    if rated:
        dropped["ratings that compare no two responses"] += rated
    if not single and (number := sum((query.prompt, query.responses[0]) not in compared for query, _ in alone)):
        dropped["responses that no other is compared with (loss kto learns from them)"] += number


def _rewarded(answers: Sequence[tuple[Query, Judgement]], dropped: Counter[str]) -> Iterable[Given]:
    """Each response that was judged, with its mean rating; where nothing was rated, with its share of comparisons won.

    That share goes from -1, worse than every response that it was compared with, to 1; a tie counts 0.
    """
    values: dict[tuple[str, str], list[float]] = {}
    messages: dict[str, Messages | None] = {}
    rated = ratings_of(answers)
    if rated:
        for rating in rated:
            values.setdefault((rating.prompt, rating.response), []).append(rating.value)
            messages[rating.prompt] = rating.messages
        if others := sum(judgement.ratings is None for _, judgement in answers):
            dropped["judgements without a rating (others have one)"] += others
    else:
        for p in preferences_of(answers):
            if p.chosen == p.rejected:
                dropped["pairs of equal responses"] += 1
                continue
            for response, won in ((p.chosen, 1.0), (p.rejected, -1.0)):
                values.setdefault((p.prompt, response), []).append(0.0 if p.tie else won)
            messages[p.prompt] = p.messages
    for (prompt, response), found in values.items():
        yield Given(prompt, response, reward=fmean(found), messages=messages[prompt])


def _demonstrated(answers: Iterable[tuple[Query, Judgement]], dropped: Counter[str]) -> Iterable[Given]:
    """Responses to imitate: examples that people wrote or accepted, thumbs up, and what was preferred to all others."""
    for query, judgement in answers:
        messages = query.columns.get("messages")
        if (example := demonstration_from(query, judgement)) is not None:
            yield Given(query.prompt, example.response, messages=messages)
        elif (good := _called_good(query, judgement)) is not None:
            if good:
                yield Given(query.prompt, query.responses[0], messages=messages)
            else:
                dropped["responses called bad"] += 1
        elif query.query_type != "edit":
            pairs = [p for p in preferences_from(query, judgement) if not p.tie]
            worse = {p.rejected for p in pairs}
            every_best = dict.fromkeys(p.chosen for p in pairs if p.chosen not in worse)
            if not every_best:
                dropped["judgements that prefer no response (ties, equal responses, ratings of one)"] += 1
            for best in every_best:
                yield Given(query.prompt, best, messages=messages)


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


def _examples(
    data: str, columns: Mapping[str, str], dropped: Counter[str], noted: dict[str, int], *, rewarded: bool
) -> list[Given] | None:
    """The rows of a file of prompts with responses; None for a store, and for a file that compares responses.

    Args:
        data: the file.
        columns: other names of columns.
        dropped: counts what is left out, by reason.
        noted: counts what is taken and is worth saying.
        rewarded: rows need a reward, too.
    """
    path = Path(data)
    if "://" in data or not path.is_file() or is_store(path):
        return None
    rows: list[Given] = []
    prompts = dict[str, str]()  # one copy of each
    column, paid = "", ""
    for number, record in enumerate(renamed(record, columns) for record in read_records(path)):
        if number == 0:
            known = [name for name in EXAMPLE_COLUMNS if isinstance(record.get(name), str)]
            if not known or "prompt" not in record or "label" in record or "chosen" in record:
                return None
            column = known[0]
            if rewarded:
                if not (found := [name for name in REWARD_COLUMNS if is_reward(record.get(name))]):
                    return None
                paid = found[0]
        prompt, response = record.get("prompt"), record.get(column)
        messages = messages_before(prompt)
        if not isinstance(response, str) or not (isinstance(prompt, str) or messages):
            dropped["rows without a prompt or a response"] += 1
            continue
        reward = record.get(paid) if rewarded else None
        if rewarded and not is_reward(reward):
            dropped["rows without a reward that is a finite number, or a list of some"] += 1
            continue
        if not rewarded and "rating" in record:
            noted[_RATED] = noted.get(_RATED, 0) + 1
        text = prompt if isinstance(prompt, str) else prompt_of_messages(messages or ())
        given = tuple(reward) if isinstance(reward, list | tuple) else reward
        rows.append(Given(prompts.setdefault(text, text), response, None, given, messages))
    return rows
