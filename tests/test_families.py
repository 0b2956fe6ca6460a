"""Families with experts, state spaces, other bases, positions or outputs: right, or refused by name before training."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import LetterTokenizer

from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.lm.decoding import generate
from rlhf_gym.lm.language_model import LanguageModel, Seq2SeqModel
from rlhf_gym.lm.log_probs import response_log_probs, token_log_probs
from rlhf_gym.lm.lora import Lora, adapted, adapter_weights, load_adapter, save_adapter, target_layers
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.lm.sequences import pack_sequences, response_positions

LIMITS = Limits(eos_id=0, suppress_tokens=(1,), max_new_tokens=10)
PROMPTS = [[2, 3, 4], [5], [6, 7, 8, 9, 10, 11], [3, 3]]
IDS: dict[str, Any] = {"vocab_size": 28, "pad_token_id": 1, "eos_token_id": 0, "bos_token_id": 0}
SIZES: dict[str, Any] = IDS | {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
BART: dict[str, Any] = IDS | {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64, "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}  # fmt: skip
SSM: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    # Mixtures whose first layer is dense.
    "Qwen3Moe": {
        **SIZES, "mlp_only_layers": [0], "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8,
    },
    "DeepseekV3": {
        **SIZES, "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 8,
    },
    # A base that is the model itself, and a router that is a linear layer of its own kind.
    "Llama4": {
        **SIZES, "intermediate_size_mlp": 64, "num_local_experts": 2, "interleave_moe_layer_step": 2, "head_dim": 8,
        "attn_temperature_tuning": False,
    },
    "Mamba": {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "Bamba": {**SIZES, **SSM, "attn_layer_indices": [1]},
    "SwitchTransformers": {
        **IDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "num_experts": 2,
        "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "decoder_start_token_id": 1,
    },
    "Marian": BART,
}  # fmt: skip
SEQ2SEQ = {"SwitchTransformers": "SwitchTransformersForConditionalGeneration", "Marian": "MarianMTModel"}
ADAPTED = {  # the ends of the names that LoRA adapts by itself
    "Qwen3Moe": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "Llama4": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "Mamba": {"in_proj"},
    "Bamba": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "in_proj"},
}


def made(name: str) -> LanguageModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{'Llama4Text' if name == 'Llama4' else name}Config")(**FAMILIES[name])
    network = getattr(transformers, SEQ2SEQ.get(name, f"{name}ForCausalLM"))(config)
    return (Seq2SeqModel if name in SEQ2SEQ else LanguageModel)(network, LetterTokenizer(28), name)


def log_probs(model: LanguageModel) -> torch.Tensor:
    rows = response_log_probs(model, PROMPTS, [list(range(4, 14))] * 4, Sampling(), LIMITS)
    return torch.cat(rows)


def train(model: LanguageModel, rate: float = 0.3) -> None:
    """One large step."""
    batch = pack_sequences(PROMPTS, [list(range(4, 14))] * 4, 1)
    chosen, _ = token_log_probs(
        model,
        model.response_states(batch),
        batch.responses[batch.response_mask],
        response_positions(batch),
        Sampling(),
        LIMITS,
    )
    (-chosen.mean()).backward()
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.requires_grad and parameter.grad is not None:
                parameter -= rate * parameter.grad
                parameter.grad = None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_decodes_trains_saves_and_takes_adapters(name: str, tmp_path: Path) -> None:
    model = made(name)
    written = generate(model, PROMPTS * 2, LIMITS, seed=3, batch_size=5)
    logs = response_log_probs(model, PROMPTS * 2, [g.ids for g in written], Sampling(), LIMITS)
    for one, row in zip(written, logs, strict=True):
        torch.testing.assert_close(torch.tensor(one.log_probs), row, atol=2e-5, rtol=0)
    # All weights.
    model.unfreeze()
    before = log_probs(model)
    train(model)
    live = log_probs(model)
    assert (live - before).abs().max() > 1e-3
    model.save(tmp_path / "whole")
    base = LanguageModel.load(str(tmp_path / "whole"), tokenizer=LetterTokenizer(28), device="cpu")
    torch.testing.assert_close(log_probs(base), live, atol=1e-5, rtol=0)
    # An adapter with the default targets.
    tuned = adapted(base, Lora(2))
    if name in ADAPTED:
        assert {layer.rpartition(".")[2] for layer, _ in target_layers(base)} == ADAPTED[name]
    for _ in range(2):  # B moves first
        train(tuned, 3.0)
    assert all(p.abs().max() > 0 for p in adapter_weights(tuned))
    learned = log_probs(tuned)
    assert (learned - live).abs().max() > 1e-3
    tuned.save(tmp_path / "merged")
    merged = LanguageModel.load(str(tmp_path / "merged"), tokenizer=LetterTokenizer(28), device="cpu")
    torch.testing.assert_close(log_probs(merged), learned, atol=2e-4, rtol=0)
    save_adapter(tuned, tmp_path / "adapter")
    torch.testing.assert_close(log_probs(load_adapter(base, tmp_path / "adapter")), learned, atol=1e-6, rtol=0)


def test_layers_that_cannot_be_adapted_are_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"mixer\.out_proj' of 'Mamba'.*kernels read its weight without calling it; leave it out"
    ):
        adapted(made("Mamba"), Lora(2, targets=("in_proj", "out_proj")))
    with pytest.raises(
        ConfigError, match=r"mlp\.down_proj' of 'Qwen3Moe'.*peft takes its name for that of the experts"
    ):
        adapted(made("Qwen3Moe"), Lora(2, targets=("down_proj",)))


def test_families_that_cannot_be_used_are_refused_by_name() -> None:
    config = transformers.BertConfig(**SIZES, is_decoder=False)
    with pytest.raises(ModelError, match=r"'bert' \(BertLMHeadModel\) is not causal"):
        LanguageModel(transformers.BertLMHeadModel(config), LetterTokenizer(28), "bert")
    odd = transformers.GPT2LMHeadModel(transformers.GPT2Config(**IDS, n_embd=32, n_layer=1, n_head=4, n_positions=64))
    odd.transformer.h[0] = torch.nn.Identity()  # a forward that raises an error of its own
    with pytest.raises(
        ModelError, match=r"'odd' \(GPT2LMHeadModel\) cannot be run on ids alone: .*use another model family"
    ):
        LanguageModel(odd, LetterTokenizer(28), "odd")


def test_constants_are_never_trained(tmp_path: Path) -> None:
    model = made("Marian")
    positions = {name: p.clone() for name, p in model.model.named_parameters() if "embed_positions" in name}
    model.save(tmp_path)
    for it in (model, LanguageModel.load(str(tmp_path), tokenizer=LetterTokenizer(28), device="cpu")):
        train(it)
        it.unfreeze()
        train(it)
        now = dict(it.model.named_parameters())
        assert all(torch.equal(now[name], old) for name, old in positions.items())


def test_many_threads_load_and_adapt_at_once(tmp_path: Path) -> None:
    """Each gets what it would have got alone, and so does whoever loads after them."""
    made("Mixtral").save(tmp_path)
    expected = log_probs(LanguageModel.load(str(tmp_path), tokenizer=LetterTokenizer(28), device="cpu"))
    seeded = {seed: adapter_weights(adapted(made("Mixtral"), Lora(2), seed=seed))[0].clone() for seed in range(4)}
    found: list[str] = []
    start = threading.Barrier(4)

    def load(seed: int) -> None:
        start.wait()
        try:
            for _ in range(2):
                model = LanguageModel.load(str(tmp_path), tokenizer=LetterTokenizer(28), device="cpu")
                assert torch.allclose(log_probs(model), expected, atol=1e-5)
                assert torch.equal(adapter_weights(adapted(model, Lora(2), seed=seed))[0], seeded[seed])
        except BaseException as error:
            found.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=load, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not found
    again = LanguageModel.load(str(tmp_path), tokenizer=LetterTokenizer(28), device="cpu")
    torch.testing.assert_close(log_probs(again), expected, atol=1e-5, rtol=0)
