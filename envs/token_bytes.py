"""What each token says, in bytes: an automaton must see the tokens that hold only a part of a character, too."""

from __future__ import annotations

import json
import re
from typing import Any

from rlhf_gym.lm.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """UTF-8 bytes of every token, in the order of ids; empty for special tokens and ids that no token has.

    Hugging Face's two families are read from their own tables: byte-level vocabularies (GPT-2's), and those with a mark for
    the space and bytes like ``<0x0A>`` (SentencePiece's). Of any other tokenizer, each id is decoded by itself.
    """
    hub = getattr(tokenizer, "hub", None)
    backend = getattr(hub, "backend_tokenizer", None)
    if hub is None or backend is None:
        return [tokenizer.decode([i]).encode() for i in range(tokenizer.vocab_size)]
    decoder = backend.decoder
    kinds = _kinds(json.loads(decoder.__getstate__())) if decoder is not None else set()
    special = set(hub.all_special_ids)
    out = [b""] * tokenizer.vocab_size
    for text, index in hub.get_vocab().items():
        if index >= tokenizer.vocab_size or index in special or index in (tokenizer.eos_id, tokenizer.pad_id):
            continue
        added = index in hub.added_tokens_decoder
        if added:
            out[index] = text.encode()
        elif "ByteLevel" in kinds:
            out[index] = bytes(_GPT2_BYTES[c] for c in text if c in _GPT2_BYTES)
        elif "ByteFallback" in kinds and (byte := _BYTE.fullmatch(text)):
            out[index] = bytes([int(byte[1], 16)])
        elif kinds & {"Metaspace", "Replace"}:
            out[index] = text.replace("\u2581", " ").encode()
        else:
            out[index] = tokenizer.decode([index]).encode()
    return out


def drops_first_space(tokenizer: Tokenizer, texts: list[bytes]) -> bool:
    """Whether a text's first space is lost in decoding, as SentencePiece's families have it.

    Args:
        tokenizer: the tokenizer.
        texts: its :func:`token_bytes`.
    """
    for token, text in enumerate(texts):
        if text.startswith(b" ") and text[1:].isalpha():
            return not tokenizer.decode([token]).startswith(" ")
    return False


def _kinds(decoder: dict[str, Any]) -> set[str]:
    """The types of a decoder and of its parts."""
    return {decoder["type"]} | {kind for part in decoder.get("decoders", ()) for kind in _kinds(part)}


def _gpt2_bytes() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies: itself where it prints, else one from U+0100 on."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printing}
    others = [byte for byte in range(256) if byte not in printing]
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


_GPT2_BYTES = _gpt2_bytes()
