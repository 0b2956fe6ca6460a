"""BERTScore against its formula, on a tiny encoder with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from rlhf_gym.embedded import EMBEDDED_LM
from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards import load_reward, score
from rlhf_gym.rewards.builtin.bert_score import BertScore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that puts a special token at either end, as BERT does: they are not compared."""
    path = tmp_path_factory.mktemp("encoder")
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_LM)
    tokenizer.backend_tokenizer.post_processor = brackets(tokenizer)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).eval().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def brackets(tokenizer: object) -> object:
    from tokenizers.processors import TemplateProcessing

    eos, name = tokenizer.eos_token_id, tokenizer.eos_token  # type: ignore[attr-defined]
    return TemplateProcessing(single=f"{name} $A {name}", special_tokens=[(name, eos)])


def by_formula(folder: Path, response: str, reference: str, layer: int) -> float:
    """Greedy matching of unit vectors, without the first and the last token: R, P and F1 of Zhang et al. 2020."""
    model, tokenizer = BertModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def vectors(text: str) -> torch.Tensor:
        with torch.no_grad():
            states = model(**tokenizer([text], return_tensors="pt"), output_hidden_states=True).hidden_states[layer][0]
        return torch.nn.functional.normalize(states[1:-1], dim=-1)

    similar = vectors(response) @ vectors(reference).T
    precision, recall = similar.max(1).values.mean(), similar.max(0).values.mean()
    return float(2 * precision * recall / (precision + recall))


def test_f1_against_the_formula(folder: Path) -> None:
    metric = load_reward("bert_score", model=str(folder), layer=1)
    assert isinstance(metric, BertScore)
    responses = ["the film is good", "a long and winding story about a road", "the film", ""]
    references = ["a good film", ["the road", "a story of a long road that winds"], "the film", "x"]
    values = score(metric, ["p"] * 4, responses, {"reference": references}).values
    assert values[0] == pytest.approx(by_formula(folder, responses[0], "a good film", 1), abs=1e-5)
    best = max(by_formula(folder, responses[1], reference, 1) for reference in references[1])
    assert values[1] == pytest.approx(best, abs=1e-5)
    assert values[2] == pytest.approx(1.0, abs=1e-5)
    assert values[3] == 0.0


def test_what_is_refused(folder: Path) -> None:
    metric = BertScore(str(folder), layer=3)
    with pytest.raises(ConfigError, match=r"layer must lie in 0\.\.2"):
        metric(["p"], ["r"], reference=["x"])
    with pytest.raises(RewardError, match="needs the column 'reference'"):
        metric(["p"], ["r"])
    with pytest.raises(RewardError, match="as the reference of sample 0"):
        metric(["p"], ["r"], reference=[3])
    with pytest.raises(ConfigError, match="bert_score cannot load"):
        BertScore(str(folder / "nowhere"))(["p"], ["r"], reference=["x"])
