"""Records of Prodigy's choice interface: options, of which one was accepted. They are read, not written."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rlhf_gym.feedback.exchange.records import Answer, Dropped, Origin
from rlhf_gym.feedback.exchange.sides import prompt_column, prompt_of


def read_prodigy(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """The option that was accepted is better than each other one; a record that was rejected or ignored is a skip.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.

    Raises:
        KeyError: the record has no prompt or no options; it names the missing field.
    """
    asked = prompt_column(record) or ("html" if "html" in record else None)
    if asked is None:
        raise KeyError("text")
    prompt = record[asked]
    if isinstance(prompt, Mapping):
        prompt = prompt.get("text", prompt.get("prompt"))
    options, accepted = record["options"], record.get("accept") or []
    responses = [
        next((option[name] for name in ("text", "label", "html") if name in option), None) for option in options
    ]
    if len(options) < 2:
        return Dropped("records with fewer than two options")
    said: dict[str, Any] = {"skipped": True}
    if record["answer"] == "accept":
        ids = [option.get("id") for option in options]
        chosen = [ids.index(one) for one in (accepted if isinstance(accepted, list) else [accepted]) if one in ids]
        if len(chosen) != 1:
            return Dropped("records in which no option, or several, were accepted")
        said = {"choice": chosen[0]}
    if isinstance(record.get("_timestamp"), int | float):
        said["created_at"] = datetime.fromtimestamp(record["_timestamp"], UTC)
    rater = record.get("_annotator_id") or record.get("_session_id")
    columns = {k: v for k, v in record.items() if k in ("meta", "source", "_input_hash", "_task_hash")}
    kind = "pair" if len(options) == 2 else "best"
    return origin.answer(prompt_of(prompt, asked), responses, query_type=kind, columns=columns, rater=rater, **said)
