"""Layers that look back through a window or within chunks: decoding, learning and transformers' own forward agree beyond it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tiny_models import LetterTokenizer
from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

from rlhf_gym.lm.cache import SlotCache
from rlhf_gym.lm.decoding import CachedDecoder, generate
from rlhf_gym.lm.language_model import LanguageModel, Seq2SeqModel
from rlhf_gym.lm.log_probs import response_log_probs, token_log_probs
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.lm.sequences import pack_sequences, response_positions

WINDOW = 6
LIMITS = Limits(eos_id=0, suppress_tokens=(1,), max_new_tokens=20)
PROMPTS = [[2, 3, 4], [5], [6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [3, 3]]
SIZES = {
    "vocab_size": 28, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 1, "eos_token_id": 0,
    "bos_token_id": 0,
}  # fmt: skip
BOTH = ["sliding_attention", "full_attention"]
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "Mistral": {},
    "Qwen2": {"use_sliding_window": True, "layer_types": BOTH},
    "Gemma2": {},
    "Gemma3": {"layer_types": BOTH},
    "Phi3": {},
    "Cohere2": {"layer_types": BOTH},
    "GptOss": {"layer_types": BOTH, **EXPERTS},
    "Llama4": {
        "attention_chunk_size": WINDOW, "intermediate_size_mlp": 64, "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0], "attn_temperature_tuning": False, **EXPERTS,
    },
}  # fmt: skip


def grown(model: torch.nn.Module) -> None:
    """Larger weights, which make far tokens matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4.0)


def windowed(name: str, **options: Any) -> LanguageModel:
    text = {"Gemma3": "Gemma3Text", "Llama4": "Llama4Text"}.get(name, name)
    torch.manual_seed(0)
    window = {} if name == "Llama4" else {"sliding_window": WINDOW}
    config = getattr(transformers, f"{text}Config")(**SIZES | window | FAMILIES[name] | options)
    network = getattr(transformers, f"{name}ForCausalLM")(config)
    grown(network)
    return LanguageModel(network, LetterTokenizer(28), name)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return windowed(request.param)


def plain_logits(model: LanguageModel, ids: list[int]) -> torch.Tensor:
    """transformers' own forward of one sequence, without a cache and without padding: ``[T, V]``."""
    with torch.no_grad():
        return model.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def test_decoding_and_learning_beyond_the_window(model: LanguageModel) -> None:
    assert model.context_length == 64
    written = generate(model, PROMPTS * 2, LIMITS, seed=3, batch_size=5)  # slots start over at different times
    assert model.slots_work  # with a cache
    logs = response_log_probs(model, PROMPTS * 2, [g.ids for g in written], Sampling(), LIMITS)
    sides = [
        token_log_probs(
            model, model.response_states(batch), batch.responses[batch.response_mask], response_positions(batch), Sampling(),
            LIMITS,
        )[0]
        for side in ("left", "right")
        for batch in [pack_sequences(PROMPTS * 2, [g.ids for g in written], 1, side=side)]  # type: ignore[arg-type]
    ]  # fmt: skip
    for padded in sides:
        torch.testing.assert_close(padded.detach(), torch.cat(logs), atol=2e-5, rtol=0)
    for prompt, one, log_probs in zip(PROMPTS * 2, written, logs, strict=True):
        torch.testing.assert_close(torch.tensor(one.log_probs), log_probs, atol=2e-5, rtol=0)
        theirs = plain_logits(model, [*prompt, *one.ids])[len(prompt) - 1 : -1].clone()
        theirs[:, 1] = -torch.inf
        theirs = theirs.log_softmax(-1).gather(1, torch.tensor(one.ids)[:, None]).squeeze(1)
        torch.testing.assert_close(log_probs, theirs, atol=2e-5, rtol=0)
    assert max(len(p) + len(g.ids) for p, g in zip(PROMPTS * 2, written, strict=True)) > 3 * WINDOW


def test_the_window_matters_and_greedy_is_transformers_generate(model: LanguageModel) -> None:
    network: Any = model.model
    ids = torch.tensor([PROMPTS[2]])
    theirs = network.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=20,
        do_sample=False,
        suppress_tokens=[1],
        eos_token_id=0,
    )
    alone = generate(model, [PROMPTS[2]], LIMITS, greedy=True)[0]
    assert alone.ids == theirs[0, ids.shape[1] :].tolist()
    assert generate(model, PROMPTS, LIMITS, greedy=True)[2].ids == alone.ids
    # A cache that forgot the window would write something else, or at least see other logits.
    config: Any = network.config
    name = "attention_chunk_size" if model.name == "Llama4" else "sliding_window"
    narrow = plain_logits(model, PROMPTS[2])
    setattr(config, name, 60)
    wide = plain_logits(model, PROMPTS[2])
    setattr(config, name, WINDOW)
    assert not torch.allclose(narrow[-1], wide[-1], atol=1e-3)


def test_slots_that_start_over_beyond_the_window(model: LanguageModel) -> None:
    decoder = CachedDecoder(model)
    rows = {0: [2] * 3, 1: [4, 5, 6, 7, 8, 9, 10, 11, 12, 13]}
    decoder.start([0, 1], list(rows.values()))
    for step in range(14):
        if step == 5:
            rows |= {0: [9, 8, 7], 2: [3]}
            decoder.start([0, 2], [rows[0], rows[2]])
        fed = torch.tensor([2 + (step + slot) % 20 for slot in rows])
        for slot, token in zip(rows, fed.tolist(), strict=True):
            rows[slot] = [*rows[slot], token]
        hidden = decoder.append(list(rows), fed)
    assert isinstance(decoder.cache, SlotCache)
    with torch.no_grad():
        for ids, state in zip(rows.values(), hidden, strict=True):
            torch.testing.assert_close(model.logits(state), plain_logits(model, ids)[-1], atol=2e-4, rtol=1e-4)


def test_a_temperature_bound_to_columns_decodes_without_a_cache() -> None:
    model = windowed("Llama4", attn_temperature_tuning=True, floor_scale=4, attn_scale=2.0)
    written = generate(model, PROMPTS, LIMITS, seed=3)
    assert model.slots_work is False
    logs = response_log_probs(model, PROMPTS, [g.ids for g in written], Sampling(), LIMITS)
    for one, row in zip(written, logs, strict=True):
        torch.testing.assert_close(torch.tensor(one.log_probs), row, atol=2e-5, rtol=0)


def test_an_encoder_decoder_with_windows() -> None:
    torch.manual_seed(0)
    part = SIZES | {"sliding_window": WINDOW, "layer_types": BOTH, "bos_token_id": 2, "final_logit_softcapping": 5.0}
    network = T5GemmaForConditionalGeneration(
        T5GemmaConfig(encoder=T5GemmaModuleConfig(**part), decoder=T5GemmaModuleConfig(**part), vocab_size=28)
    )
    grown(network)
    model = Seq2SeqModel(network, LetterTokenizer(28), "T5Gemma")
    assert (model.start_id, model.num_decoder_layers, model.context_length) == (2, 2, 64)
    written = generate(model, PROMPTS * 2, LIMITS, seed=3, batch_size=5)
    assert model.slots_work
    logs = response_log_probs(model, PROMPTS * 2, [g.ids for g in written], Sampling(), LIMITS)
    for prompt, one, log_probs in zip(PROMPTS * 2, written, logs, strict=True):
        torch.testing.assert_close(torch.tensor(one.log_probs), log_probs, atol=2e-5, rtol=0)
        with torch.no_grad():
            read = torch.tensor([[2, *one.ids[:-1]]])
            theirs = network(input_ids=torch.tensor([prompt]), decoder_input_ids=read).logits[0].float()
        theirs[:, 1] = -torch.inf
        theirs = theirs.log_softmax(-1).gather(1, torch.tensor(one.ids)[:, None]).squeeze(1)
        torch.testing.assert_close(log_probs, theirs, atol=2e-5, rtol=0)
    ids = torch.tensor([PROMPTS[2]])
    theirs = network.generate(ids, max_new_tokens=20, do_sample=False, suppress_tokens=[1], eos_token_id=0)
    assert generate(model, PROMPTS, LIMITS, greedy=True)[2].ids == theirs[0, 1:].tolist()
