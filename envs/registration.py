"""Names for `gym.make` and `gym.make_vec`: strings only, so that registering imports nothing."""

from __future__ import annotations

import gymnasium as gym

NAMESPACE = "rlhf_gym"

# Each registered environment: its id, and the keyword arguments of TokenEnv and TokenVectorEnv (plain JSON values).
ENVIRONMENTS: dict[str, dict[str, object]] = {
    "Sentiment-v0": {"task": "sentiment", "tokenizer": "embedded"},
    "Words-v0": {"task": "words", "tokenizer": "embedded"},
    "Length-v0": {"task": "length", "tokenizer": "embedded"},
    "Format-v0": {"task": "format", "tokenizer": "embedded"},
    "Detox-v0": {"task": "detox", "tokenizer": "embedded"},
    "Stars-v0": {"task": "stars", "tokenizer": "embedded"},
    # Needs the extra `reasoning`; choose the tokenizer of a model that can answer.
    "Reasoning-v0": {"task": "reasoning"},
    # Small vocabularies of their own: neither a language model nor torch is loaded.
    "Copy-v0": {"task": "copy"},
    "Reverse-v0": {"task": "reverse"},
    "Sort-v0": {"task": "sort"},
    "Brackets-v0": {"task": "brackets"},
    "Arithmetic-v0": {"task": "arithmetic"},
}

# Conversations: the id, and the keyword arguments of ConversationEnv.
CONVERSATIONS: dict[str, dict[str, object]] = {
    "SentimentConversation-v0": {
        "task": "sentiment",
        "tokenizer": "embedded",
        "template": "continuation",
        "user": {
            "lines": ["the acting", "the music", "the script", "the ending", "all in all, this film", "the audience"],
            "order": "random",
        },
    },
}

# Environments with tools: the id, and the keyword arguments of ToolEnv.
TOOL_ENVIRONMENTS: dict[str, dict[str, object]] = {
    "Calculator-v0": {"task": "calculation", "tokenizer": "embedded", "tools": ["calculator"]},
}

# Conversations that are environments of their own, over texts: the id, and what makes one and many.
TEXT_ENVIRONMENTS: dict[str, tuple[str, str]] = {
    "GuessNumber-v0": ("tasks.guess_number:GuessNumberEnv", "envs.conversation_vectors:guess_number_vector"),
    "BookTable-v0": ("tasks.book_table:BookTableEnv", "envs.conversation_vectors:book_table_vector"),
}


def turn_level(name: str) -> str:
    """The id of a task's turn-level environment: ``Sort-v0`` has ``SortTurn-v0``."""
    base, version = name.rsplit("-", 1)
    return f"{base}Turn-{version}"


def register_all() -> None:
    """Register every environment once, at the token level and at the turn level."""
    for name, options in ENVIRONMENTS.items():
        _register(name, options, "envs.token_env:TokenEnv", "envs.token_vector_env:TokenVectorEnv")
        _register(turn_level(name), options, "envs.turn_env:TurnEnv", "envs.turn_vector_env:TurnVectorEnv")
    for name, options in CONVERSATIONS.items():
        _register(
            name, options, "envs.conversation_env:ConversationEnv", "envs.dialogue_vector_env:ConversationVectorEnv"
        )
    for name, options in TOOL_ENVIRONMENTS.items():
        _register(name, options, "envs.tool_env:ToolEnv", "envs.dialogue_vector_env:ToolVectorEnv")
    for name, (single, vector) in TEXT_ENVIRONMENTS.items():
        _register(name, {}, single, vector)


def _register(name: str, options: dict[str, object], single: str, vector: str) -> None:
    if f"{NAMESPACE}/{name}" not in gym.registry:
        gym.register(
            f"{NAMESPACE}/{name}",
            entry_point=f"rlhf_gym.{single}",
            vector_entry_point=f"rlhf_gym.{vector}",
            kwargs=options,
        )
