"""The embedded language model: it loads as any other, writes finite text, and predicts held-out reviews as the card says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rlhf_gym.embedded import EMBEDDED_LM

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT.parent / "shared" / "data" / "movie_reviews.zip"
PERPLEXITY_BOUND = 450  # per word, on every eighth held-out review
TOKENIZER = AutoTokenizer.from_pretrained(EMBEDDED_LM)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(EMBEDDED_LM)


def generate(model: PreTrainedModel, text: str, seed: int, *, bos: bool) -> list[int]:
    torch.manual_seed(seed)
    ids = [TOKENIZER.bos_token_id] * bos + TOKENIZER.encode(text)
    out = model.generate(torch.tensor([ids]), do_sample=True, top_k=0, max_new_tokens=100)
    return out[0, len(ids) :].tolist()


def test_it_is_small() -> None:
    total = sum(f.stat().st_size for f in EMBEDDED_LM.parent.rglob("*") if "__pycache__" not in f.parts)
    assert total < 12e6


def test_nothing_is_pickled() -> None:
    assert {f.suffix for f in EMBEDDED_LM.iterdir()} == {".json", ".safetensors"}


def test_configuration(model: PreTrainedModel) -> None:
    assert model.dtype == torch.float32
    assert model.config.vocab_size == len(TOKENIZER)
    assert model.config.eos_token_id == TOKENIZER.eos_token_id == TOKENIZER.bos_token_id
    assert model.config.pad_token_id == TOKENIZER.pad_token_id != TOKENIZER.eos_token_id
    dropouts = (model.config.embd_pdrop, model.config.resid_pdrop, model.config.attn_pdrop)
    assert dropouts == (0.0, 0.0, 0.0), "train mode must compute what eval mode does"
    assert json.loads((EMBEDDED_LM / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    assert all(torch.isfinite(p).all() for p in model.parameters())


@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789 .,;:!?'\"()-$%&/*"))
def test_tokenizer_round_trip(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert not {TOKENIZER.eos_token_id, TOKENIZER.pad_token_id} & set(ids)
    assert TOKENIZER.decode(ids) == text


@given(st.text())
def test_tokenizer_knows_every_text(text: str) -> None:
    """Byte level: nothing is unknown. (A lone surrogate is no text, and the special tokens' own names are themselves.)"""
    if any("\ud800" <= c <= "\udfff" for c in text) or "<|" in text:
        return
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize("bos", [False, True])
def test_it_writes_passages_that_end(model: PreTrainedModel, bos: bool) -> None:
    responses = [generate(model, "the film opens with", seed, bos=bos) for seed in range(12)]
    assert all(all(0 <= i < len(TOKENIZER) for i in r) for r in responses)
    ended = [r for r in responses if r[-1] == TOKENIZER.eos_token_id]
    assert len(ended) >= 6
    assert not any(TOKENIZER.pad_token_id in r for r in responses)
    texts = [TOKENIZER.decode(r, skip_special_tokens=True) for r in responses]
    assert len(set(texts)) > 8
    assert all(t == t.lower() for t in texts)


def test_it_knows_the_language(model: PreTrainedModel) -> None:
    def nll(text: str) -> float:
        ids = torch.tensor([[TOKENIZER.bos_token_id, *TOKENIZER.encode(text)]])
        with torch.no_grad():
            return float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)

    assert nll("the film is one of the best of the year.") < nll("the film one is of best the year the of.") - 5


@pytest.mark.skipif(not CORPUS.exists(), reason=f"no corpus at {CORPUS.name}'s usual place, ../shared/data")
def test_held_out_perplexity(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of the held-out reviews is predicted as the card says of all of them."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "embedded_model"))
    from data import drop_copies, load_reviews, split_reviews
    from train_lm import Passages, total_nll

    train, _, test = split_reviews(load_reviews(CORPUS))
    few = drop_copies(test, train)[::8]
    nll, _ = total_nll(model, Passages(few, TOKENIZER).documents(0))
    assert math.exp(nll / sum(r.num_words for r in few)) < PERPLEXITY_BOUND
