"""Reading what agents learn from that do not generate: responses, preferences or rewards, split by prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from rlhf_gym.agents.common.given_trajectories import is_reward
from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback.exchange.incoming import renamed
from rlhf_gym.feedback.exchange.record_files import read_records
from rlhf_gym.feedback.exchange.records import Answer
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
from rlhf_gym.loop.config import AgentConfig
from rlhf_gym.loop.given_data import Given, GivenData
from rlhf_gym.loop.preference_data import READ_COLUMNS, is_store, read_data
from rlhf_gym.loop.run_task import split_prompts
from rlhf_gym.reward_model.batches import first_turn
from rlhf_gym.reward_model.ratings import ratings_of
from rlhf_gym.tasks.samples import Prompt

EXAMPLE_COLUMNS = ("completion", "response", "target", "answer", "output")
"""Columns that hold the response in a file of examples, which compares nothing; the first that a file has counts."""
REWARD_COLUMNS = ("reward", "score", "rewards", "token_rewards")
"""Columns that hold a response's reward, a number or a list of one for each token; the first that a file has counts."""
_RATED = "responses that are imitated whatever their rating"
WANTED = {
    "data": "a response to imitate", "preferences": "one response preferred to another",
    "trajectories": f"a response with a reward (columns prompt, response and {', '.join(REWARD_COLUMNS[:-1])} or "
    f"{REWARD_COLUMNS[-1]}; or judgements)",
}  # fmt: skip
"""What the data of each argument must hold, in words."""


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
    rows: Sequence[Given] | None = None
    source, answers = config.data, list[Answer]()
    if argument != "preferences" and config.data_format == "auto":
        rows = _examples(config.data, config.data_columns, dropped, noted, rewarded=argument == "trajectories")
    if rows is None:
        rows, source, answers = _judged(config, argument, dropped)
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
    train, held_out = _split(different, held_out_fraction, source)
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
    return GivenData(train, held_out, source, +dropped, noted | oddities(pairs))


def _judged(config: AgentConfig, argument: str, dropped: Counter[str]) -> tuple[list[Given], str, list[Answer]]:
    """The rows that follow from the judgements of a run, a store or a file; where those come from, in words; and they."""
    assert config.data is not None
    form = None if config.data_format == "auto" else config.data_format
    read = read_data(config.data, form, config.data_columns, keep=READ_COLUMNS)
    if any(query.columns.get(SEVERAL_TURNS) for query, _ in read.answers):
        raise ConfigError(
            f"the judgements of {read.source} are on conversations of several turns, in which others' turns would be learned "
            "from as if they were the policy's: fit a reward model to them (`rlhf-gym fit-reward`)"
        )
    dropped.update(read.dropped)
    if argument == "trajectories":
        rows = _rewarded(read.answers, dropped)
    elif argument == "data":
        rows = _demonstrated(read.answers, dropped)
    else:
        rows = _preferred(read.answers, dropped, single=config.settings.get("loss") == "kto")
    return list(rows), read.source, read.answers


def _split(rows: Sequence[Given], held_out_fraction: float, source: str) -> tuple[list[Given], list[Given]]:
    """Rows to learn from, and rows of other prompts to measure on; dialogues that begin alike stay together."""
    several = len({first_turn(row.prompt) for row in rows}) > 1
    parts = [first_turn(row.prompt) if several else row.prompt for row in rows]
    held = {prompt.text for prompt in split_prompts([Prompt(part) for part in parts], held_out_fraction, source)[1]}
    train, rest = (
        [row for row, part in zip(rows, parts, strict=True) if (part in held) is side] for side in (False, True)
    )
    return train, rest


def _preferred(answers: Sequence[Answer], dropped: Counter[str], *, single: bool) -> Iterable[Given]:
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


def _rewarded(answers: Sequence[Answer], dropped: Counter[str]) -> Iterable[Given]:
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


def _demonstrated(answers: Iterable[Answer], dropped: Counter[str]) -> Iterable[Given]:
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
