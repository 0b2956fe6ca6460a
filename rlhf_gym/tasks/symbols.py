"""Tasks over a handful of symbols, in one table: copy, reverse, sort, brackets, arithmetic.

These are the CartPoles of the suite: no language model, no torch, a vocabulary of a dozen ids, answers that a few lines of
Python verify, an optimum of exactly 1, and minutes at most to learn on one core.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial as bind
from typing import Any

import numpy as np

from rlhf_gym.errors import TaskError
from rlhf_gym.tasks.base import Task, whole_number
from rlhf_gym.tasks.samples import Prompt, is_held_out
from rlhf_gym.tasks.symbol_tokenizer import SymbolTokenizer

FEWEST_TO_SPLIT = 24
"""With fewer distinct prompts than these, all are trained on and none is held out."""

_PATIENCE = 1000  # draws in a row that bring nothing new, after which there is nothing new

PAIRS = ("()", "[]", "{}", "<>")
_CLOSES = {pair[1]: pair[0] for pair in PAIRS}
OPERATORS = "+-*"


def matching(prompts: list[str], responses: list[str], answer: list[str]) -> list[float]:
    """The share of places where response and answer have the same symbol, of the longer one's places: 0 to 1.

    Args:
        prompts: the prompts' texts.
        responses: the responses' texts.
        answer: the column with the right answers.

    >>> matching(["ab="] * 3, ["ab", "aa", "abab"], ["ab"] * 3)
    [1.0, 0.5, 0.5]
    """
    pairs = zip(responses, answer, strict=True)
    return [sum(x == y for x, y in zip(r, a, strict=False)) / max(len(r), len(a), 1) for r, a in pairs]


def exact(prompts: list[str], responses: list[str], answer: list[str]) -> list[float]:
    """1 where the response is the answer, else 0.

    Args:
        prompts: the prompts' texts.
        responses: the responses' texts.
        answer: the column with the right answers.

    >>> exact(["ab="] * 2, ["ab", "a"], ["ab"] * 2)
    [1.0, 0.0]
    """
    return [float(r == a) for r, a in zip(responses, answer, strict=True)]


def open_brackets(text: str) -> list[str] | None:
    """The brackets that are still open at the end of a text, outermost first; None if one closes that is not open.

    >>> open_brackets("([]{"), open_brackets("(]")
    (['(', '{'], None)
    """
    stack: list[str] = []
    for symbol in text:
        if symbol not in _CLOSES:
            stack.append(symbol)
        elif not stack or stack.pop() != _CLOSES[symbol]:
            return None
    return stack


def balanced(prompts: list[str], responses: list[str]) -> list[float]:
    """1 where prompt and response together are balanced, else 0.

    Args:
        prompts: the prompts' texts.
        responses: the responses' texts.

    >>> balanced(["([", "(["], ["])", "]"])
    [1.0, 0.0]
    """
    return [float(open_brackets(p + r) == []) for p, r in zip(prompts, responses, strict=True)]


def closed(prompts: list[str], responses: list[str]) -> list[float]:
    """The share of the prompt's open brackets that the response closes: 0 to 1, and 1 only where all is balanced.

    ``c / (n + f)``: the prompt leaves ``n`` brackets open, ``c`` of them are closed before the first mistake (a bracket that
    closes what is not open there), and ``f`` counts faults: that mistake, and brackets that the response opened and left open.

    Args:
        prompts: the prompts' texts.
        responses: the responses' texts.

    >>> closed(["(["] * 4, ["])", "]", "])(", "])]"])
    [1.0, 0.5, 0.6666666666666666, 0.6666666666666666]
    """
    return [_closed(p, r) for p, r in zip(prompts, responses, strict=True)]


def _closed(prompt: str, response: str) -> float:
    before = open_brackets(prompt) or []
    stack, lowest, mistakes = list(before), len(before), 0
    for symbol in response:
        if symbol not in _CLOSES:
            stack.append(symbol)
        elif stack and stack[-1] == _CLOSES[symbol]:
            stack.pop()
            lowest = min(lowest, len(stack))
        else:
            mistakes = 1
            break
    left_open = len(stack) - lowest
    return (len(before) - lowest) / max(len(before) + mistakes + left_open, 1)


def _letters(length: int, num_symbols: int) -> str:
    return string.ascii_lowercase[:num_symbols] + ">"


def _draw_copy(rng: np.random.Generator, length: int, num_symbols: int) -> tuple[str, str]:
    text = "".join(string.ascii_lowercase[i] for i in rng.integers(num_symbols, size=length))
    return text + ">", text


def _draw_reverse(rng: np.random.Generator, length: int, num_symbols: int) -> tuple[str, str]:
    prompt, text = _draw_copy(rng, length, num_symbols)
    return prompt, text[::-1]


def _draw_sort(rng: np.random.Generator, length: int, num_digits: int) -> tuple[str, str]:
    text = "".join(string.digits[i] for i in rng.integers(num_digits, size=length))
    return text + ">", "".join(sorted(text))


def _draw_brackets(rng: np.random.Generator, depth: int, kinds: int) -> tuple[str, str]:
    """A walk up to the depth that now and then closes what it has just opened, `depth` times at most."""
    stack: list[str] = []
    text, closings = "", 0
    closing = {pair[0]: pair[1] for pair in PAIRS[:kinds]}
    while len(stack) < depth:
        if stack and closings < depth and rng.random() < 1 / 3:
            text += closing[stack.pop()]
            closings += 1
        else:
            stack.append(PAIRS[rng.integers(kinds)][0])
            text += stack[-1]
    return text, "".join(closing[s] for s in reversed(stack))


def _draw_arithmetic(rng: np.random.Generator, digits: int, operators: str) -> tuple[str, str]:
    a, b = (int(n) for n in rng.integers(10**digits, size=2))
    chosen = sorted(set(operators))
    operator = chosen[rng.integers(len(chosen))]
    if operator == "-":
        a, b = max(a, b), min(a, b)
    return f"{a}{operator}{b}=", str({"+": a + b, "-": a - b, "*": a * b}[operator])


def _longest_result(digits: int, operators: str) -> int:
    return max({"+": digits + 1, "-": digits, "*": 2 * digits}[operator] for operator in operators)


def _some_operators(what: str, value: object) -> None:
    if not isinstance(value, str) or not value or set(value) - set(OPERATORS):
        raise TaskError(f"{what} must be some of {OPERATORS!r}, got {value!r}")


def _whole(low: int, high: int | None = None) -> Callable[[str, object], None]:
    return bind(_check_whole, low, high)


def _check_whole(low: int, high: int | None, what: str, value: object) -> None:
    whole_number(what, value, low, high)


@dataclass(frozen=True)
class Size:
    """An option that makes a task's prompts longer or more varied.

    Attributes:
        default: its value at a difficulty.
        check: refuses a value out of its range, called with the option's name and the value.
    """

    default: Callable[[int], Any]
    check: Callable[[str, object], None]


@dataclass(frozen=True)
class SymbolKind:
    """A row of the table. The functions get the sizes by name.

    Attributes:
        sizes: the task's own options.
        symbols: the vocabulary, besides EOS and padding.
        draw: draws a prompt and its answer, ``draw(rng, **sizes)``.
        longest_answer: symbols of the longest answer; the length limit is one more, for EOS.
        graded: the reward that gives a part of the answer a part of 1.
        whole: the reward that is 1 for a whole answer, else 0; also a metric, under its own name.
    """

    sizes: Mapping[str, Size]
    symbols: Callable[..., str]
    draw: Callable[..., tuple[str, str]]
    longest_answer: Callable[..., int]
    graded: Callable[..., list[float]] = matching
    whole: Callable[..., list[float]] = exact


_COPYING = {
    "length": Size(lambda difficulty: 1 + difficulty, _whole(1)),
    "num_symbols": Size(lambda difficulty: min(26, 2 + 2 * difficulty), _whole(2, 26)),
}

SYMBOL_TASKS: Mapping[str, SymbolKind] = {
    # Write the prompt's letters in their order: `abca>` asks for `abca`.
    "copy": SymbolKind(_COPYING, _letters, _draw_copy, lambda length, **_: length),
    # From the last letter to the first: `abcc>` asks for `ccba`.
    "reverse": SymbolKind(_COPYING, _letters, _draw_reverse, lambda length, **_: length),
    # Write the prompt's digits in ascending order: `3141>` asks for `1134`.
    "sort": SymbolKind(
        {
            "length": Size(lambda difficulty: 1 + difficulty, _whole(1)),
            "num_digits": Size(lambda difficulty: min(10, 3 + difficulty), _whole(2, 10)),
        },
        lambda num_digits, **_: string.digits[:num_digits] + ">",
        _draw_sort,
        lambda length, **_: length,
    ),
    # Close the prompt's open brackets: `([]{` asks for `})`.
    "brackets": SymbolKind(
        {
            "depth": Size(lambda difficulty: 1 + difficulty, _whole(1)),
            "kinds": Size(lambda difficulty: min(len(PAIRS), 1 + difficulty), _whole(1, len(PAIRS))),
        },
        lambda kinds, **_: "".join(PAIRS[:kinds]),
        _draw_brackets,
        lambda depth, **_: depth,
        graded=closed,
        whole=balanced,
    ),
    # Compute the prompt's result: `7+5=` asks for `12`. A difference's first number is never the smaller one.
    "arithmetic": SymbolKind(
        {
            "digits": Size(lambda difficulty: min(9, (difficulty + 1) // 2), _whole(1, 9)),
            "operators": Size(lambda difficulty: "+" if difficulty % 2 else OPERATORS, _some_operators),
        },
        lambda operators, **_: string.digits + "".join(sorted(set(operators))) + "=",
        _draw_arithmetic,
        _longest_result,
    ),
}


def symbol_task(
    name: str, *, difficulty: int = 1, easiest: int | None = None, partial: bool = True, num_prompts: int = 512, seed: int = 0,
    **sizes: Any,
) -> Task:  # fmt: skip
    """A task of the table, with prompts drawn at random.

    Args:
        name: one of :data:`SYMBOL_TASKS`.
        difficulty: 1 or more; gives the sizes that are not given.
        easiest: prompts of every difficulty from this one to ``difficulty``, in equal parts where there are as many; a
            curriculum (``prompt_order="difficulty"``) begins with the easiest. None: of ``difficulty`` alone.
        partial: a part of the answer earns a part of the reward; False: 1 for the whole answer, else 0.
        num_prompts: distinct prompts to draw; a task that has fewer gives all it has.
        seed: of the draws. Which prompts are held out (a sixth) does not depend on it.
        sizes: the task's own options; None takes the difficulty's.
            ``copy``, ``reverse``: ``length``, letters in a prompt; ``num_symbols``, different letters, 2..26.
            ``sort``: ``length``, digits in a prompt; ``num_digits``, different digits, 2..10.
            ``brackets``: ``depth``, brackets that a prompt leaves open; ``kinds`` of brackets, 1..4.
            ``arithmetic``: ``digits``, most digits of a number, 1..9; ``operators``, some of ``+-*``.

    Raises:
        TaskError: an unknown option, or a value out of its range.
    """
    kind = SYMBOL_TASKS[name]
    if unknown := [key for key in sizes if key not in kind.sizes]:
        known = ("difficulty", "easiest", *kind.sizes, "partial", "num_prompts", "seed")
        raise TaskError(f"task {name!r} has no option {unknown[0]!r}; expected some of {', '.join(known)}")
    whole_number("difficulty", difficulty, 1)
    whole_number("num_prompts", num_prompts, 1)
    if easiest is not None:
        whole_number("easiest", easiest, 1, difficulty)
        if chosen := [key for key, value in sizes.items() if value is not None]:
            raise TaskError(f"easiest takes the sizes of each difficulty: leave {', '.join(chosen)} out, or easiest")
    levels = [_sizes_at(kind, level, sizes) for level in range(easiest or difficulty, difficulty + 1)]
    drawn: dict[str, Prompt] = {}
    for number, level in enumerate(levels):
        share = num_prompts // len(levels) + (number < num_prompts % len(levels))
        own = _draw_prompts(bind(kind.draw, **level), share, seed)
        for prompt in own:  # the same text may be drawn at two difficulties: it is of the easier one
            columns = prompt.columns if easiest is None else {**prompt.columns, "difficulty": easiest + number}
            drawn.setdefault(prompt.text, Prompt(prompt.text, columns))
    prompts = list(drawn.values())
    symbols = dict.fromkeys("".join(kind.symbols(**level) for level in reversed(levels)))
    held_out = [p for p in prompts if is_held_out(p.text)] if len(prompts) >= FEWEST_TO_SPLIT else []
    train = [p for p in prompts if not is_held_out(p.text)] if held_out else prompts
    return Task(
        name=name,
        prompts=train or prompts,
        held_out=held_out,
        reward=kind.graded if partial else kind.whole,
        max_new_tokens=max(kind.longest_answer(**level) for level in levels) + 1,
        metrics={kind.whole.__name__: kind.whole},
        tokenizer=SymbolTokenizer("".join(symbols)),
    )


def _sizes_at(kind: SymbolKind, difficulty: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes at a difficulty, checked; those that are given stay."""
    sizes = {}
    for key, size in kind.sizes.items():
        sizes[key] = size.default(difficulty) if given.get(key) is None else given[key]
        size.check(key, sizes[key])
    return sizes


def _draw_prompts(draw: Callable[[np.random.Generator], tuple[str, str]], number: int, seed: int) -> list[Prompt]:
    """As many distinct prompts, or all there are, each with its answer as a column."""
    rng = np.random.default_rng(seed)
    drawn: dict[str, Prompt] = {}
    misses = 0
    while len(drawn) < number and misses < _PATIENCE:
        text, answer = draw(rng)
        misses = misses + 1 if text in drawn else 0
        drawn.setdefault(text, Prompt(text, {"answer": answer}))
    return list(drawn.values())


copy_task = bind(symbol_task, "copy")
reverse_task = bind(symbol_task, "reverse")
sort_task = bind(symbol_task, "sort")
brackets_task = bind(symbol_task, "brackets")
arithmetic_task = bind(symbol_task, "arithmetic")
