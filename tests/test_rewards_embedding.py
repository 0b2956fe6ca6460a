"""Embedding similarity against its formula, on tiny encoders with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, RobertaConfig, RobertaModel

from rlhf_gym.embedded import EMBEDDED_LM
from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards import load_reward, score
from rlhf_gym.rewards.builtin.embedding import EmbeddingSimilarity
from rlhf_gym.rewards.check import check_reward

SHORT, LONG = "a good film", "a long and winding story about a road, and about two people on it who do not get on"


@pytest.fixture(scope="module", params=["masked language model", "with a pooling layer"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder")
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_LM)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 64, "initializer_range": 0.3}  # fmt: skip
    if request.param == "with a pooling layer":
        RobertaModel(RobertaConfig(**sizes)).save_pretrained(path)
    else:
        BertForMaskedLM(BertConfig(**sizes)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def by_formula(folder: Path, one: str, other: str, pooling: str = "mean") -> float:
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in (one, other)]
    vectors = [state.mean(0) if pooling == "mean" else state[0] for state in states]
    return float(torch.nn.functional.cosine_similarity(*vectors, dim=0))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_formula_whatever_the_batch(folder: Path, pooling: str) -> None:
    metric = load_reward("embedding_similarity", model=str(folder), pooling=pooling)
    references = [[LONG, "the road"], SHORT, LONG, SHORT]
    values = score(metric, ["p"] * 4, [SHORT, LONG, LONG, " "], {"reference": references}).values
    best = max(by_formula(folder, SHORT, other, pooling) for other in (LONG, "the road"))
    assert values[0] == pytest.approx(best, abs=1e-5)
    assert values[1] == pytest.approx(by_formula(folder, LONG, SHORT, pooling), abs=1e-5)
    assert values[2] == pytest.approx(1, abs=1e-5)
    assert values[3] == 0
    assert abs(values[1]) < 0.98  # the encoder tells texts apart at all


def test_against_the_prompt_and_with_a_prefix(folder: Path) -> None:
    plain = EmbeddingSimilarity(str(folder), column="prompt")
    assert plain([SHORT], [LONG]) == pytest.approx([by_formula(folder, SHORT, LONG)], abs=1e-5)
    assert plain([SHORT], [LONG], prompt=[LONG]) == pytest.approx([1], abs=1e-5)  # a column of that name
    prefixed = EmbeddingSimilarity(str(folder), column="prompt", prefix="query: ")
    assert prefixed([SHORT], [LONG]) == pytest.approx(
        [by_formula(folder, f"query: {SHORT}", f"query: {LONG}")], abs=1e-5
    )


def test_long_texts_lose_their_end(folder: Path) -> None:
    metric = EmbeddingSimilarity(str(folder), column="prompt", max_tokens=8)
    assert metric([LONG + " x" * 2000], [LONG + " y" * 2000]) == pytest.approx([1], abs=1e-5)


def test_it_can_be_tried_out(folder: Path) -> None:
    report = check_reward(EmbeddingSimilarity(str(folder), column="prompt"), [SHORT, LONG] * 3, ["fine", "bad"] * 3)
    assert report.deterministic
    assert report.order_free
    assert "the prompt again" in {probe.name for probe in report.suspicious}


def test_what_is_refused(folder: Path) -> None:
    metric = EmbeddingSimilarity(str(folder))
    with pytest.raises(RewardError, match="'embedding_similarity' needs the column 'reference'"):
        metric(["p"], ["r"])
    with pytest.raises(ConfigError, match="pooling mean or cls"):
        EmbeddingSimilarity(str(folder), pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="embedding_similarity cannot load"):
        EmbeddingSimilarity(str(folder / "nowhere"))(["p"], ["r"], reference=["x"])
