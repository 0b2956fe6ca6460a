"""The token ids of a prompt: its text's, or those of its conversation."""

from __future__ import annotations

from rlhf_gym.lm.tokenizer import AnyTokenizer, encode_conversation
from rlhf_gym.tasks.samples import Prompt


def prompt_ids(prompt: Prompt, tokenizer: AnyTokenizer) -> list[int]:
    """The ids that a model starts a response to a prompt from: its messages', where it has some and the tokenizer a template.

    Args:
        prompt: the prompt.
        tokenizer: the model's, ours or a transformers one.

    Raises:
        ModelError: the chat template refuses the messages.
    """
    return encode_conversation(tokenizer, prompt.text, prompt.columns.get("messages"))
