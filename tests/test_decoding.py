"""Cached decoding against plain teacher forcing: the same numbers, whatever the padding, the batch and the restarts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import family, tiny_language_model

from rlhf_gym.errors import ModelError
from rlhf_gym.lm import decoding
from rlhf_gym.lm.cache import SPARE, SlotCache
from rlhf_gym.lm.decoding import CachedDecoder, Generation, generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import response_log_probs, token_log_probs
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.lm.sequences import pack_sequences, response_positions
from rlhf_gym.text import cut_at_stop

KINDS = ("gpt2", "llama")
PROMPTS = [[2, 3, 4], [5], [6, 7, 8, 9, 10, 11], [3, 3]]
LIMITS = Limits(eos_id=0, suppress_tokens=(1,), max_new_tokens=20)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_language_model(request.param, scale=4.0)


def plain_hidden(model: LanguageModel, ids: list[int]) -> torch.Tensor:
    """One sequence, no cache, no padding: the reference for everything else."""
    with torch.no_grad():
        return model.hidden(torch.tensor([ids]))[0, -1]


def test_left_padded_prefill_equals_each_prompt_alone(model: LanguageModel) -> None:
    hidden = CachedDecoder(model).start(range(4), PROMPTS)
    for row, prompt in zip(hidden, PROMPTS, strict=True):
        torch.testing.assert_close(row, plain_hidden(model, prompt), atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_slots_that_restart_end_and_go_on(model: LanguageModel, data: st.DataObject) -> None:
    """Whatever happens to the other slots, a slot's hidden state is that of its own tokens alone."""
    decoder = CachedDecoder(model)
    tokens = st.integers(2, 27)
    prompts = st.lists(tokens, min_size=1, max_size=9)
    written = {slot: data.draw(prompts) for slot in range(3)}
    hidden = dict(zip(written, decoder.start(list(written), list(written.values())), strict=True))
    for _ in range(data.draw(st.integers(1, 12))):
        restart = data.draw(st.sets(st.integers(0, 3), max_size=2))
        if restart:
            fresh = {slot: data.draw(prompts) for slot in sorted(restart)}
            written |= fresh
            hidden |= dict(zip(fresh, decoder.start(list(fresh), list(fresh.values())), strict=True))
        drop = data.draw(st.sets(st.sampled_from(sorted(written)), max_size=1)) if len(written) > 1 else set()
        for slot in drop:
            del written[slot], hidden[slot]
        slots = data.draw(st.permutations(sorted(written)))
        new = torch.tensor([data.draw(tokens) for _ in slots])
        for slot, token in zip(slots, new.tolist(), strict=True):
            written[slot] = [*written[slot], token]
        hidden = dict(zip(slots, decoder.append(slots, new), strict=True))
        for slot, row in hidden.items():
            torch.testing.assert_close(row, plain_hidden(model, written[slot]), atol=2e-5, rtol=1e-4)


def test_a_restart_forgets_columns_so_that_memory_stays_bounded(model: LanguageModel) -> None:
    decoder = CachedDecoder(model)
    decoder.start([0, 1], [[2, 3], [4, 5]])
    for step in range(60):
        if step % 6 == 0:
            decoder.start([step // 6 % 2], [[2, 3, 4]])
        decoder.append([0, 1], torch.tensor([5, 6]))
    assert isinstance(decoder.cache, SlotCache)
    assert decoder.cache.num_columns <= 20
    assert decoder.cache.layers.rectangles[0].keys.shape[2] <= 20 + 2 * SPARE


def test_a_prompt_wider_than_what_is_stored_finds_room(model: LanguageModel) -> None:
    decoder = CachedDecoder(model)
    decoder.start([0, 1], [[2], [3]])
    wide = decoder.start([1, 7], [[4, 5, 6, 7, 8], [9, 10]])
    torch.testing.assert_close(wide[0], plain_hidden(model, [4, 5, 6, 7, 8]), atol=1e-5, rtol=1e-5)
    on = decoder.append([7, 0, 1], torch.tensor([11, 12, 13]))
    for row, ids in zip(on, [[9, 10, 11], [2, 12], [4, 5, 6, 7, 8, 13]], strict=True):
        torch.testing.assert_close(row, plain_hidden(model, ids), atol=1e-5, rtol=1e-5)


def gpt_neo(context: int) -> LanguageModel:
    """Holds masks of as many columns as its context has."""
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    return family("GPTNeo", vocab_size=28, max_position_embeddings=context, window_size=4, **sizes)


@pytest.mark.parametrize(
    "made", [lambda: tiny_language_model(context=12), lambda: gpt_neo(12)], ids=["gpt2", "gpt_neo"]
)
def test_a_slot_that_lies_idle_never_leaves_the_context(made: Callable[[], LanguageModel]) -> None:
    model = made()
    decoder = CachedDecoder(model)
    decoder.start(range(5), [[2] * 11] * 5)
    decoder.append(range(5), torch.full((5,), 3))
    for _ in range(10):  # slot 4 is let go at position 12, the first that does not exist
        decoder.start(range(4), [[4] * 11] * 4)
        last = decoder.append(range(4), torch.full((4,), 5))
    torch.testing.assert_close(last[0], plain_hidden(model, [4] * 11 + [5]), atol=1e-5, rtol=1e-5)
    # A row that has ended at the last position leaves columns behind, and the others start over to the right of them.
    decoder.start(range(1, 4), [[6]] * 3)
    for _ in range(10):
        last = decoder.append(range(1, 4), torch.full((3,), 7))
    torch.testing.assert_close(last[0], plain_hidden(model, [6] + [7] * 10), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "slots"),
    [
        ("Gemma2", {"sliding_window": 64, "head_dim": 8}, True),
        ("Mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4}, True),
        ("Bloom", {}, False),  # binds positions to columns
        ("Mamba", {}, False),  # keeps a state instead of keys and values
    ],
)
def test_other_families_too_with_or_without_a_cache(name: str, options: dict[str, Any], slots: bool) -> None:
    sizes = {"vocab_size": 28, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 1}
    other = family(name, **sizes | ({"num_key_value_heads": 2} if name == "Gemma2" else {}) | options)
    generations = generate(other, PROMPTS * 2, LIMITS, seed=3, batch_size=5)
    assert other.slots_work is slots
    logs = response_log_probs(other, PROMPTS * 2, [g.ids for g in generations], Sampling(), LIMITS)
    for g, row in zip(generations, logs, strict=True):
        torch.testing.assert_close(row, torch.tensor(g.log_probs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_k=9), Sampling(1.3, top_p=0.8)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_generation_log_probs_equal_teacher_forcing(model: LanguageModel, sampling: Sampling, side: str) -> None:
    generations = generate(model, PROMPTS, LIMITS, sampling=sampling, seed=3)
    assert {g.ended for g in generations} <= {True, False}
    batch = pack_sequences(PROMPTS, [g.ids for g in generations], 1, side=side)  # type: ignore[arg-type]
    with torch.no_grad():
        chosen, _ = token_log_probs(
            model, model.response_states(batch), batch.responses[batch.response_mask], response_positions(batch),
            sampling, LIMITS,
        )  # fmt: skip
    expected = torch.tensor([x for g in generations for x in g.log_probs])
    torch.testing.assert_close(chosen, expected, atol=1e-5, rtol=1e-5)


def test_some_responses_end_in_mid_batch(model: LanguageModel) -> None:
    generations = generate(model, PROMPTS * 6, LIMITS, seed=1)
    assert any(g.ended for g in generations)
    assert any(not g.ended for g in generations)
    for g in generations:
        assert (g.ids[-1] == 0) == g.ended
        assert 0 not in g.ids[:-1]
        assert 1 not in g.ids
        assert len(g.ids) == len(g.log_probs) <= LIMITS.max_new_tokens
        assert g.ended or len(g.ids) == LIMITS.max_new_tokens


def test_batch_size_and_company_do_not_change_what_is_drawn(model: LanguageModel) -> None:
    whole = generate(model, PROMPTS * 3, LIMITS, seed=5)
    small = generate(model, PROMPTS * 3, LIMITS, seed=5, batch_size=2)
    alone = generate(model, PROMPTS[2:3], LIMITS, seed=5, first_episode=2)
    assert [g.ids for g in whole] == [g.ids for g in small]
    assert alone[0].ids == whole[2].ids
    assert len({tuple(g.ids) for g in whole}) > 4


def test_waiting_prompts_take_the_places_of_ended_ones(model: LanguageModel) -> None:
    seen: list[int] = []
    alone = [generate(model, PROMPTS[i % 4 : i % 4 + 1], LIMITS, seed=5, first_episode=i)[0] for i in range(20)]
    together = generate(model, PROMPTS * 5, LIMITS, seed=5, batch_size=6, on_progress=seen.append)
    assert [g.ids for g in together] == [g.ids for g in alone]
    assert seen == sorted(set(seen))
    assert seen[-1] == 20


def test_episode_numbers_may_be_given_one_by_one(model: LanguageModel) -> None:
    whole = generate(model, PROMPTS, LIMITS, seed=5)
    back = generate(model, PROMPTS[::-1], LIMITS, seed=5, episodes=[3, 2, 1, 0])
    assert [g.ids for g in back] == [g.ids for g in whole[::-1]]


def test_half_precision_runs() -> None:
    model = tiny_language_model("llama")
    torch.nn.Module.to(model.model, torch.bfloat16)
    assert all(g.ids for g in generate(model, PROMPTS * 3, LIMITS, seed=5, batch_size=7))


def test_nothing_to_write_is_nothing_written(model: LanguageModel) -> None:
    assert generate(model, [], LIMITS) == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "prompt 1 is empty"), ([2, 28], "prompt 1 holds id 28.*from 0 to 27"), ([-1], "prompt 1 holds id -1")],
)
def test_prompts_that_no_model_could_read_are_refused(model: LanguageModel, prompt: list[int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        generate(model, [[2], prompt], LIMITS)


def test_diverged_weights_are_named_as_the_cause() -> None:
    model = tiny_language_model()
    with torch.no_grad():
        next(model.trunk.parameters()).fill_(torch.nan)
    with pytest.raises(ModelError, match="weights have diverged"):
        generate(model, PROMPTS, LIMITS)


def test_minimum_length_holds_back_eos(model: LanguageModel) -> None:
    limits = Limits(eos_id=0, suppress_tokens=(1,), min_new_tokens=7, max_new_tokens=20)
    generations = generate(model, PROMPTS * 4, limits, seed=1)
    assert min(len(g.ids) for g in generations) >= 8
    logs = response_log_probs(model, PROMPTS * 4, [g.ids for g in generations], Sampling(), limits)
    for g, row in zip(generations, logs, strict=True):
        torch.testing.assert_close(row, torch.tensor(g.log_probs), atol=1e-5, rtol=1e-5)


def test_stop_sequence_ends_and_is_cut(model: LanguageModel) -> None:
    free = generate(model, PROMPTS, LIMITS, seed=2)
    stop = free[0].text[3:5]
    stopped = generate(model, PROMPTS, LIMITS, seed=2, stop=[stop])[0]
    assert stopped.ended
    assert stopped.text == free[0].text[: free[0].text.index(stop)]
    assert stopped.ids == free[0].ids[: len(stopped.ids)]


def test_cut_at_stop_takes_the_first_of_all() -> None:
    assert cut_at_stop("one. two! three", ["!", "."]) == "one"
    assert cut_at_stop("none", ["!"]) == "none"


def test_greedy_takes_the_most_probable(model: LanguageModel) -> None:
    one = generate(model, PROMPTS[:1], LIMITS, greedy=True, seed=1)[0]
    logits = model.logits(plain_hidden(model, PROMPTS[0])[None])[0].clone()
    logits[1] = -torch.inf
    assert one.ids[0] == int(logits.argmax())


def test_values_are_read_from_the_same_pass(model: LanguageModel) -> None:
    head = torch.nn.Linear(model.hidden_size, 1)
    g = generate(model, PROMPTS[:1], LIMITS, seed=4, value_head=lambda h: head(h).squeeze(-1))[0]
    with torch.no_grad():
        expected = [float(head(plain_hidden(model, PROMPTS[0] + g.ids[:t]))) for t in range(len(g.ids))]
    assert g.values == pytest.approx(expected, abs=1e-5)


def test_a_prompt_that_does_not_fit_is_refused_by_its_length() -> None:
    model = tiny_language_model(context=24)
    with pytest.raises(ModelError, match="at most 4 tokens"):
        generate(model, [[2] * 5], LIMITS)


@pytest.mark.parametrize(
    ("min_new_tokens", "batch_size", "stop"), [(0, 3, ()), (6, 2, ()), (0, 3, ("a", "fx")), (6, 2, ("b",))]
)
def test_looking_at_ends_every_few_tokens_changes_no_response(
    model: LanguageModel, min_new_tokens: int, batch_size: int, stop: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(eos_id=0, suppress_tokens=(1,), min_new_tokens=min_new_tokens, max_new_tokens=20)
    looked: list[bool] = []
    monkeypatch.setattr(decoding, "check_drawn", looked.append)

    def responses() -> list[Generation]:
        looked.clear()
        return generate(
            model, PROMPTS * 3, limits, seed=3, batch_size=batch_size, stop=stop,
            value_head=lambda hidden: hidden.sum(-1), sampling=Sampling(temperature=3.0),
        )  # fmt: skip

    each = responses()
    often = len(looked)
    monkeypatch.setattr(decoding, "works_ahead", lambda device: True)
    few = responses()
    assert [g.ids for g in few] == [g.ids for g in each]
    assert [g.ended for g in few] == [g.ended for g in each]
    assert [g.text for g in few] == [g.text for g in each]
    if stop:  # some stop, some end by EOS
        assert {g.ids[-1] == 0 for g in each if g.ended} == {True, False}
    assert {len(g.ids) for g in each} > {20} or min_new_tokens  # some end early, some at the limit
    for a, b in zip(few, each, strict=True):
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-5)
        assert a.values == pytest.approx(b.values, abs=1e-3)
    assert all(looked)
    assert len(looked) < often / 3


def test_weights_that_are_not_finite_are_found_by_the_late_look(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "works_ahead", lambda device: True)
    monkeypatch.setattr(model, "logits", lambda hidden: torch.full((len(hidden), model.vocab_size), torch.nan))
    with pytest.raises(ModelError, match="not finite"):
        generate(model, PROMPTS, LIMITS)


def test_a_prompt_that_several_slots_have_is_run_once(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    hidden = model.hidden

    def counted(ids: torch.Tensor, **given: Any) -> torch.Tensor:
        rows.append(len(ids))
        return hidden(ids, **given)

    decoder = CachedDecoder(model)
    monkeypatch.setattr(model, "hidden", counted)
    states = decoder.start(range(6), [PROMPTS[0], PROMPTS[2], PROMPTS[0], PROMPTS[1], PROMPTS[2], PROMPTS[0]])
    assert rows == [3]
    torch.testing.assert_close(states[0], states[2])
    # Each goes on by itself: what one is fed does not reach the others.
    fed = decoder.append(range(6), torch.tensor([4, 5, 6, 7, 8, 9]))
    for state, prompt, token in zip(fed, [0, 2, 0, 1, 2, 0], [4, 5, 6, 7, 8, 9], strict=True):
        torch.testing.assert_close(state, plain_hidden(model, [*PROMPTS[prompt], token]), atol=1e-5, rtol=1e-5)
