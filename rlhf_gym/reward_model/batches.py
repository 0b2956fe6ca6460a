"""Preferences as minibatches: the split by prompt, and comparisons that go through the network together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.exchange.transcripts import ASSISTANT, is_transcript
from rlhf_gym.feedback.preferences import Preference
from rlhf_gym.lm.chat_template import Messages
from rlhf_gym.reward_model.ratings import Rating

Text = tuple[str, str]
"""A prompt and a response."""
Item = Preference | Rating
"""What one rater says of two responses, or of one."""
ItemT = TypeVar("ItemT", Preference, Rating, Item)


def split_by_prompt(preferences: Sequence[ItemT], share: float, seed: int) -> tuple[list[ItemT], list[ItemT]]:
    """Training and validation preferences, no prompt on both sides.

    Comparisons of one prompt share their responses, so a random split would test on what was trained on. Dialogues that begin
    with the same turn count as one prompt: data sets hold several stages of a dialogue. Where all are on one prompt (a
    conversation that always begins the same), whole queries are held out in the place of prompts.

    Args:
        preferences: all of them; or ratings.
        share: share of the *prompts*, in (0, 1), that is held out; at least one prompt is, and at least one is not.
        seed: seed of the draw of prompts; the preferences' order does not matter.

    Raises:
        FeedbackError: fewer than two prompts, and fewer than two queries.
    """
    part_of = split_key(preferences)
    prompts = sorted({part_of(p) for p in preferences})
    if len(prompts) < 2:
        raise FeedbackError(
            f"a reward model needs preferences on at least 2 prompts or queries (one is held out), got {len(preferences)} on "
            f"{len(prompts)}: collect more"
        )
    order = np.random.default_rng(seed).permutation(len(prompts))
    number = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    held = {prompts[i] for i in order[:number]}
    train = [p for p in preferences if part_of(p) not in held]
    return train, [p for p in preferences if part_of(p) in held]


def is_held_out(items: Sequence[Item], share: float, seed: int) -> Callable[[Item], bool]:
    """What says of an item whether :func:`split_by_prompt` of these items holds its prompt (or query) out.

    Args:
        items: all that is split.
        share: share of the prompts held out.
        seed: seed of the draw of prompts.

    Raises:
        FeedbackError: fewer than two prompts, and fewer than two queries.
    """
    return like_those(split_by_prompt(items, share, seed)[1], split_key(items))


def like_those(held: Sequence[Item], part_of: Callable[[Item], str]) -> Callable[[Item], bool]:
    """What says of an item whether it is on the prompt (or of the query) of one of these.

    Args:
        held: the items.
        part_of: what stays on one side of a split (:func:`split_key`).
    """
    parts = {part_of(item) for item in held}
    return lambda item: part_of(item) in parts


def split_key(items: Sequence[Item]) -> Callable[[Item], str]:
    """What stays on one side of a split: the prompt, or the query where there is one prompt only.

    Args:
        items: all that is split.
    """
    by_query = len({first_turn(item.prompt) for item in items}) < 2 and all(item.query_id for item in items)
    return (lambda item: item.query_id) if by_query else (lambda item: first_turn(item.prompt))


def first_turn(prompt: str) -> str:
    r"""A transcript up to its first ``Assistant:``; any other prompt as it is.

    >>> first_turn("\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Bye\n\nAssistant:")
    '\n\nHuman: Hi'
    """
    return prompt.partition(ASSISTANT)[0] if is_transcript(prompt) else prompt


def prompt_hashes(items: Iterable[Item]) -> frozenset[str]:
    """Hashes of the first turns of items' prompts, which tell a prompt that was fitted and give none of its text away."""
    return frozenset(prompt_hash(prompt) for prompt in {item.prompt for item in items})


def prompt_hash(prompt: str) -> str:
    """The first 64 bits of the SHA-256 of a prompt's first turn, in hexadecimal digits."""
    return hashlib.sha256(first_turn(prompt).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Comparisons:
    """Comparisons (or ratings) that go through the network in one pass, each distinct sequence once.

    Attributes:
        sequences: ``S`` encoded sequences.
        items: ``[N]``, the comparisons; or ratings, of which ``chosen`` and ``rejected`` are both the one response.
        chosen: ``[N]``, for each comparison the place of its chosen sequence in ``sequences``.
        rejected: ``[N]``, likewise.
        tie: ``[N]``, True for ties.
        margin: ``[N]``, the rater's margin; 0 where none was given, and for ties.
    """

    sequences: Sequence[Sequence[int]]
    items: Sequence[Item]
    chosen: list[int]
    rejected: list[int]
    tie: list[bool]
    margin: list[float]

    def __len__(self) -> int:
        return len(self.chosen)

    def only(self, rows: Sequence[int]) -> Comparisons:
        """Some of the comparisons, with all sequences."""
        return Comparisons(
            self.sequences, [self.items[i] for i in rows], [self.chosen[i] for i in rows], [self.rejected[i] for i in rows],
            [self.tie[i] for i in rows], [self.margin[i] for i in rows],
        )  # fmt: skip


class ComparisonSet:
    """Encoded preferences, or ratings, from which minibatches are drawn.

    All comparisons of one query stay together: a ranking of ``k`` responses is ``k (k - 1) / 2`` comparisons but only
    ``k`` sequences, and taken apart it overfits within one epoch (Ouyang et al. 2022, section 3.5).

    Args:
        items: at least one.
        encode: maps a prompt and a response to ids; called once for each distinct pair.
    """

    def __init__(self, items: Sequence[Item], encode: Callable[[str, str], Sequence[int]]) -> None:
        self.items = list(items)
        self._encoded = {text: encode(*text) for text in texts_of(items)}
        groups: dict[tuple[str, str | int], list[int]] = {}
        for i, p in enumerate(self.items):
            groups.setdefault((p.prompt, p.query_id or i), []).append(i)
        self._groups = list(groups.values())
        self._lengths = [max(max(map(len, self._pair(i))) for i in group) for group in self._groups]

    def __len__(self) -> int:
        return len(self.items)

    def minibatches(self, size: int, tokens: int, rng: np.random.Generator) -> list[list[Comparisons]]:
        """One epoch in random order.

        Args:
            size: comparisons a minibatch; whole queries go in until it is reached.
            tokens: most padded tokens of one forward pass (a single query may hold more).
            rng: source of the order.

        Returns:
            Minibatches, each the parts that it goes through the network in.
        """
        order = rng.permutation(len(self._groups)).tolist()
        # Sorting inside windows of some minibatches saves most of the padding, and still mixes anew every epoch.
        window = 8 * size
        batches: list[list[int]] = []
        for begin in range(0, len(order), window):
            count = size
            for group in sorted(order[begin : begin + window], key=lambda g: self._lengths[g]):
                if count >= size:
                    batches.append([])
                    count = 0
                batches[-1].append(group)
                count += len(self._groups[group])
        return [self._parts(batches[i], tokens) for i in rng.permutation(len(batches))]

    def _parts(self, groups: list[int], tokens: int) -> list[Comparisons]:
        """Cut a minibatch (sorted by length) where one forward pass would hold too many tokens."""
        parts: list[list[int]] = []
        sequences = 0
        for group in groups:
            own = len({id(s) for i in self._groups[group] for s in self._pair(i)})
            if not parts or (sequences + own) * self._lengths[group] > tokens:
                parts.append([])
                sequences = 0
            parts[-1] += self._groups[group]
            sequences += own
        return [self._compare(rows) for rows in parts]

    def _pair(self, i: int) -> tuple[Sequence[int], Sequence[int]]:
        one, other = _sides(self.items[i])
        return self._encoded[one], self._encoded[other]

    def _compare(self, rows: list[int]) -> Comparisons:
        items = [self.items[i] for i in rows]
        sides = [_sides(item) for item in items]
        place = {
            text: number for number, text in enumerate(dict.fromkeys([*(a for a, _ in sides), *(b for _, b in sides)]))
        }
        tie = [isinstance(item, Preference) and item.tie for item in items]
        margins = [item.margin if isinstance(item, Preference) else None for item in items]
        return Comparisons(
            sequences=[self._encoded[text] for text in place],
            items=items,
            chosen=[place[one] for one, _ in sides],
            rejected=[place[other] for _, other in sides],
            tie=tie,
            margin=[0.0 if t else margin or 0.0 for margin, t in zip(margins, tie, strict=True)],
        )


def texts_of(items: Iterable[Item]) -> dict[Text, Messages | None]:
    """The different texts of preferences or ratings, each prompt with each of its responses; and its chat messages, if any."""
    return {text: item.messages for item in items for text in _sides(item)}


def _sides(item: Item) -> tuple[Text, Text]:
    if isinstance(item, Rating):
        return (item.prompt, item.response), (item.prompt, item.response)
    return (item.prompt, item.chosen), (item.prompt, item.rejected)
