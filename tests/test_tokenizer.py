"""Tokenizers: ids for prompts with and without chat templates, padding that nobody misses, and clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import LetterTokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import GPT2Config, PreTrainedTokenizerFast

from rlhf_gym.errors import ModelError
from rlhf_gym.lm.loading import find, resolve
from rlhf_gym.lm.tokenizer import HubTokenizer, Tokenizer, decode_all, load_tokenizer
from rlhf_gym.tasks.symbol_tokenizer import SymbolTokenizer

TEMPLATE = "{% for m in messages %}u:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"


def byte_tokenizer(extra: tuple[str, ...] = ("<end>",), *, close: bool = False, **special: Any) -> Any:
    """All 256 bytes, as in GPT-2, and some special tokens; ``close``: every text ends with EOS, as some tokenizers do."""
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(extra))
    if close:
        backend.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 256)])
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=backend, **{"eos_token": "<end>", **special})


@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_text_survives_encoding(text: str) -> None:
    tokenizer = HubTokenizer(byte_tokenizer(), "bytes")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.pad_id not in tokenizer.encode(text)


def test_decode_leaves_special_tokens_out() -> None:
    tokenizer = HubTokenizer(byte_tokenizer(), "bytes")
    assert tokenizer.decode([*tokenizer.encode("ab"), tokenizer.eos_id]) == "ab"


TOKENIZERS: dict[str, Any] = {
    "bytes": HubTokenizer(byte_tokenizer(("<end>", "<pad>"), pad_token="<pad>"), "bytes"),
    "embedded": load_tokenizer("embedded"),
    "symbols": SymbolTokenizer("ab\N{GRINNING FACE}="),
    "no batches of its own": LetterTokenizer(),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_decoding_many_is_decoding_each(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = st.lists(st.integers(0, tokenizer.vocab_size - 1) | st.just(tokenizer.eos_id), max_size=12)
    rows = data.draw(st.lists(ids, min_size=1, max_size=5))
    lengths = np.array([len(row) for row in rows])
    beyond = data.draw(st.integers(0, tokenizer.vocab_size - 1))  # ids that do not count
    padded = np.full((len(rows), lengths.max() + 1), beyond)
    for row, ids_of_one in zip(padded, rows, strict=True):
        row[: len(ids_of_one)] = ids_of_one
    assert decode_all(tokenizer, padded, lengths) == [tokenizer.decode(row) for row in rows]


def test_padding_of_its_own_is_kept() -> None:
    tokenizer = HubTokenizer(byte_tokenizer(("<end>", "<pad>"), pad_token="<pad>"), "bytes")
    assert (tokenizer.eos_id, tokenizer.pad_id) == (256, 257)


@pytest.mark.parametrize(
    ("extra", "special", "vocab_size", "pad"),
    [
        (("<end>", "<unk>"), {"pad_token": "<end>", "unk_token": "<unk>"}, None, 257),  # padding with EOS: not that
        (("<end>", "<|reserved_special_token_7|>"), {}, None, 257),
        (("<end>", "[unused3]"), {}, None, 257),
        (("<end>",), {}, 260, 257),  # rows of the embedding that no token has
    ],
)
def test_padding_is_found_where_nobody_misses_it(
    extra: tuple[str, ...], special: dict[str, Any], vocab_size: int | None, pad: int
) -> None:
    assert HubTokenizer(byte_tokenizer(extra, **special), "bytes", vocab_size).pad_id == pad


def test_without_a_spare_token_padding_is_a_byte_of_no_text() -> None:
    # GPT-2 is such a case: its one special token is EOS, and any other id is text.
    tokenizer = HubTokenizer(byte_tokenizer(bos_token="<end>", unk_token="<end>"), "bytes")
    assert tokenizer.hub.convert_ids_to_tokens([tokenizer.pad_id]) == ["À"]
    assert tokenizer.pad_id != tokenizer.eos_id


def test_without_eos_it_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'bytes' has no EOS token.*Set one"):
        HubTokenizer(byte_tokenizer(eos_token=None), "bytes")


def test_eos_beyond_the_logits_is_refused() -> None:
    with pytest.raises(ModelError, match="id 256, but the model has 200 logits"):
        HubTokenizer(byte_tokenizer(), "bytes", 200)


def test_a_prompt_is_its_own_ids() -> None:
    tokenizer = HubTokenizer(byte_tokenizer(), "bytes")
    assert not tokenizer.is_chat
    assert tokenizer.encode_prompt("film") == tokenizer.encode("film")


def test_a_prompt_is_not_closed_by_eos() -> None:
    tokenizer = HubTokenizer(byte_tokenizer(close=True), "bytes")
    assert tokenizer.hub.encode("film")[-1] == tokenizer.eos_id
    assert tokenizer.encode_prompt("film") == tokenizer.encode("film")


@pytest.mark.parametrize(("special", "first"), [({"bos_token": "<start>"}, 257), ({}, 256)])
def test_an_empty_prompt_is_a_token_to_start_from(special: dict[str, Any], first: int) -> None:
    tokenizer = HubTokenizer(byte_tokenizer(("<end>", "<start>"), **special), "bytes")
    assert tokenizer.encode_prompt("") == [first]


def test_a_chat_model_is_asked_through_its_template() -> None:
    hub = byte_tokenizer()
    hub.chat_template = TEMPLATE
    tokenizer = HubTokenizer(hub, "chat")
    assert tokenizer.is_chat
    assert tokenizer.decode(tokenizer.encode_prompt("hello")) == "u:hello;a:"
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_both_tokenizers_are_what_the_house_needs() -> None:
    assert isinstance(HubTokenizer(byte_tokenizer(), "bytes"), Tokenizer)
    assert isinstance(LetterTokenizer(), Tokenizer)


def test_a_folder_loads_with_the_number_of_logits_of_its_model(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).vocab_size == 257
    GPT2Config(vocab_size=264, bos_token_id=256, eos_token_id=256).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id) == (264, 256, 257)


def test_names_of_gguf_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").touch()
    source = resolve(f"{tmp_path}:m.gguf")
    assert (source.location, source.gguf_file) == (str(tmp_path), "m.gguf")
    assert resolve(str(tmp_path / "m.gguf")).gguf_file == "m.gguf"
    assert resolve("owner/model:q4.gguf").location == "owner/model"
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    for name in (f"~/{tmp_path.name}:m.gguf", f"~/{tmp_path.name}/m.gguf"):
        assert find(name).location == str(tmp_path)
    with pytest.raises(ModelError, match=r"no file 'other\.gguf' in the folder"):
        find(f"{tmp_path}:other.gguf")


def test_a_missing_model_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", unreachable)
    with pytest.raises(ModelError, match=r"unknown model 'no/such-model'.*could not be reached.*Give 'embedded'"):
        load_tokenizer("no/such-model")
    with pytest.raises(ModelError, match=r"cannot be a name on the Hugging Face hub"):
        load_tokenizer("./models/no such model/at all")
    with pytest.raises(ModelError, match="is empty"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelError, match="is a file"):
        load_tokenizer(str(tmp_path / "model.bin"))
    with pytest.raises(ModelError, match="cannot load the tokenizer of"):
        load_tokenizer(str(tmp_path))
