"""Conversation trees of OpenAssistant (Köpf et al. 2023): replies to one message, ranked, are one answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_gym.feedback.exchange.dataset_formats import number, truth
from rlhf_gym.feedback.exchange.preference_sets import ranked
from rlhf_gym.feedback.exchange.records import Answer, Dropped, Origin
from rlhf_gym.feedback.exchange.sides import Message, prompt_of, text_of

_ROLES = {"prompter": "user", "assistant": "assistant"}


def read_oasst(record: Mapping[str, Any], origin: Origin) -> list[Answer | Dropped]:
    """A ranking for each message of the prompter's that has two ranked replies or more, with the messages before it.

    Rank 0 is the best. Replies without a rank, deleted ones and those that reviewers refused were not judged.

    Args:
        record: a tree, or the messages of one tree as ``rows``.
        origin: the record's place, rater and round, where it does not name them.
    """
    root = _tree(record["rows"]) if "rows" in record else record["prompt"]
    if root is None:
        return [Dropped("trees without a first message")]
    tree_id = record["rows"][0]["message_tree_id"] if "rows" in record else record["message_tree_id"]
    return list(_rankings(root, [], str(tree_id), origin)) or [Dropped("trees without two ranked replies to a message")]


def _rankings(
    node: Mapping[str, Any], before: Sequence[Message], tree_id: str, origin: Origin
) -> Iterator[Answer | Dropped]:
    talk = [*before, {"role": _ROLES.get(node["role"], node["role"]), "content": text_of(node["text"])}]
    replies = [reply for reply in node.get("replies") or () if truth(reply.get("deleted")) is not True]
    judged = [r for r in replies if number(r.get("rank")) is not None and truth(r.get("review_result")) is not False]
    if len(judged) > 1 and talk[-1]["role"] == "user":
        columns = {"message_tree_id": tree_id, "lang": node.get("lang")}
        ranks = [reply["rank"] for reply in judged]
        yield ranked(prompt_of(talk), [reply["text"] for reply in judged], ranks, origin, columns=columns)
    for reply in replies:
        yield from _rankings(reply, talk, tree_id, origin)


def _tree(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The tree that flat messages make, each with the id of the message that it replies to."""
    replies = defaultdict(list)
    for row in rows:
        replies[row.get("parent_id") or None].append(row)  # a table has an empty text

    def grown(row: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**row, "replies": [grown(reply) for reply in replies[row["message_id"]]]}

    return grown(replies[None][0]) if replies[None] else None
