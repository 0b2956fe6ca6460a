"""Tables of two responses and a choice, as anybody may have them: the columns are found by their names.

Whatever is called otherwise is mapped with ``--columns prompt=... response_a=... response_b=... choice=...``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_gym.feedback.exchange.dataset_formats import alpaca_prompt, number
from rlhf_gym.feedback.exchange.records import Answer, Dropped, Origin
from rlhf_gym.feedback.exchange.sides import prompt_column, prompt_of, side_of

_STEMS = ("response", "answer", "output", "completion", "summary", "reply", "candidate", "text", "option", "generation")
_SUFFIXES = (("a", "b"), ("1", "2"), ("0", "1"), ("left", "right"))
_CHOICES = (
    "choice",
    "winner",
    "preference",
    "preferred",
    "better",
    "best",
    "chosen",
    "selected",
    "label",
    "comparison",
)
_RATERS = ("rater", "annotator", "worker", "judge", "user", "annotator_id", "worker_id", "user_id")
_BOTH_BAD = ("both_bad", "bothbad", "tie_(bothbad)", "both_are_bad")
_TIES = (
    *("tie", "a_tie", "tied", "ties", "both", "equal", "same", "about_the_same", "neither", "draw"),
    *("no_preference", "both_good", "both_are_good", *_BOTH_BAD),
)
_SKIPS = ("skip", "skipped")
# Words that may stand before what tells the responses apart: "Model A", but never "not a".
_BEFORE = (*_STEMS, "model", "choice", "assistant", "system", "chatbot", "bot", "sample", "version", "side", "column")
_AMBIGUOUS = (
    "choices of 0 and 1 between responses 1 and 2, which may count from 0 or call 0 a tie (name the columns, e.g. "
    "--columns response_0=... response_1=..., or --format alpacafarm)"
)


def pair_columns(record: Mapping[str, Any]) -> tuple[str, str, tuple[str, str]] | None:
    """The columns of the two responses, with what tells them apart; None where no names are known."""
    known = {_plain(name): name for name in record}
    for stem in _STEMS:
        for suffixes in _SUFFIXES:
            for join in ("_", ""):
                one, other = (known.get(f"{stem}{join}{suffix}") for suffix in suffixes)
                # Numbered from 0 or from 1: of three responses, the two are not all there is.
                if one is not None and other is not None:
                    return one, other, suffixes
    return None


def response_column(record: Mapping[str, Any], prompt: str) -> str | None:
    """The column of the one response; None where no name is known.

    Args:
        record: the record.
        prompt: the column of the prompt, which is not taken for the response.
    """
    known = {_plain(name): name for name in record if name != prompt}
    return next((known[name] for stem in _STEMS for name in (stem, f"model_{stem}") if name in known), None)


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_").replace(" ", "_")


def choice_column(record: Mapping[str, Any]) -> str | None:
    """The name of the column that holds the choice; None where no name is known."""
    known = {name.casefold(): name for name in record}
    return next((known[name] for name in _CHOICES if name in known), None)


def is_pair(record: Mapping[str, Any]) -> bool:
    """True if a record has two responses, a prompt and a choice under known names."""
    return None not in (pair_columns(record), prompt_column(record), choice_column(record))


class PairReader:
    """Reads two responses and a choice, which names one by its column, by what tells the columns apart, by model or text.

    Args:
        first: the first rows of the file: its columns, and whether its choices are counted from 0 or from 1.
    """

    def __init__(self, first: Sequence[Mapping[str, Any]]) -> None:
        header = {name: None for row in first if isinstance(row, Mapping) for name in row}
        self._prompt, self._pair, self._choice = prompt_column(header), pair_columns(header), choice_column(header)
        given = {
            number(row.get(self._choice)) for row in first if isinstance(row, Mapping) and self._choice is not None
        }
        self._zero_ties = 2 in given
        self._ambiguous = 0 in given and not self._zero_ties

    def __call__(self, record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
        """The answer in one record.

        Args:
            record: one record of the format.
            origin: the record's place, rater and round, where it does not name them.

        Raises:
            KeyError: a column is missing; it names the missing one.
        """
        asked, pair, choice = self._prompt, self._pair, self._choice
        if asked is None or pair is None or choice is None:
            raise KeyError("prompt" if asked is None else "response_a" if pair is None else "choice")
        one, other, suffixes = pair
        responses = [side_of(record[name], name) for name in (one, other)]
        if any(not isinstance(said, str) and len(said) != 1 for said in responses):
            return Dropped("responses of several messages")
        texts = [said if isinstance(said, str) else said[-1]["content"] for said in responses]
        given = number(record[choice]) if suffixes == ("1", "2") else None
        if (given == 0 and not self._zero_ties) or (given == 1 and self._ambiguous):
            return Dropped(_AMBIGUOUS)
        said: dict[str, Any] | None = (
            {"tie": True} if given == 0 else answer_of(record[choice], (one, other), suffixes, record, texts)
        )
        if said is None:
            return Dropped("choices that name neither response")
        rater = next((record[name] for name in _RATERS if record.get(name) not in (None, "")), None)
        used = (asked, one, other, choice)
        columns = {name: value for name, value in record.items() if name not in used}
        strength = number(record.get("margin", record.get("strength")))
        if strength is not None and strength >= 0 and "choice" in said:
            said["strength"] = strength
        prompt = prompt_of(record[asked], asked)
        if asked == "instruction" and isinstance(extra := record.get("input"), str):  # Alpaca's two parts of a prompt
            prompt = prompt_of(alpaca_prompt(prompt.text, extra))
        return origin.answer(prompt, texts, columns=columns, rater=rater, **said)


def read_pair(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """The answer in a record that stands alone; see :class:`PairReader`.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.

    Raises:
        KeyError: a column is missing; it names the missing one.
    """
    return PairReader([record])(record, origin)


def answer_of(
    value: Any, names: tuple[str, str], suffixes: tuple[str, str], record: Mapping[str, Any], texts: list[str]
) -> dict[str, Any] | None:
    """What a choice says, as the fields of a judgement; None where it says nothing.

    Args:
        value: the choice as the file has it.
        names: the columns of the two responses.
        suffixes: what tells them apart: ``a`` and ``b``, ``0`` and ``1``, ...
        record: the record, in which models may be named.
        texts: the two responses.
    """
    if value is None or str(value).strip() == "":
        return {"skipped": True}
    given = number(value)
    said = str(int(given)) if given is not None and given == int(given) else str(value).strip()
    plain = _plain(said)
    if plain in _TIES or (given == 1.5 and suffixes == ("1", "2")):
        return {"tie": True} | ({"details": {"both_bad": True}} if plain in _BOTH_BAD else {})
    if plain in _SKIPS:
        return {"skipped": True}
    models = [record.get(f"model_{suffix}") for suffix in suffixes]
    for index, (name, suffix) in enumerate(zip(names, suffixes, strict=True)):
        # Columns called A and B, or left and right, are also numbered from 0 or from 1: that says nothing for sure.
        spellings = {f"{word}{join}{suffix}" for word in _BEFORE for join in ("", "_")}
        if plain in {_plain(name), suffix, *spellings}:
            return {"choice": index}
        by_model = isinstance(models[index], str) and models[0] != models[1] and said == models[index]
        if by_model or (said == texts[index] and texts[0] != texts[1]):
            return {"choice": index}
    return None
