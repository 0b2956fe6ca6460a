"""The reward model: scores, fit, normalisation, checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import LetterTokenizer, tiny_language_model

from rlhf_gym.errors import FeedbackError, ModelError, TrainingError
from rlhf_gym.feedback.preferences import Preference
from rlhf_gym.reward_model import (
    Features,
    FitConfig,
    Rating,
    Readout,
    RewardModel,
    evaluate,
    fit,
    fit_config,
    split_by_prompt,
)
from rlhf_gym.reward_model import checkpoint as checkpoints
from rlhf_gym.reward_model import features as features_module
from rlhf_gym.rewards import score

FIT = FitConfig(learning_rate=3e-3, epochs=4, batch_size=16, seed=1)


def reward_model(kind: Any = "gpt2", seed: int = 0) -> RewardModel:
    return RewardModel(tiny_language_model(kind, hidden=16, layers=2, seed=seed), seed=seed)


def random_texts(number: int, seed: int = 0) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)

    def text(low: int, high: int) -> str:
        return "".join(chr(97 + c) for c in rng.integers(0, 6, rng.integers(low, high)))

    return [text(1, 5) for _ in range(number)], [text(0, 12) for _ in range(number)]


def likes_a(number: int, seed: int = 0) -> list[Preference]:
    """Preferences of someone who likes the letter a, never tied."""
    prompts, first = random_texts(number, seed)
    _, second = random_texts(number, seed + 1000)
    return [
        Preference(p, *((x, y) if x.count("a") > y.count("a") else (y, x)), query_id=str(i))
        for i, (p, x, y) in enumerate(zip(prompts, first, second, strict=True))
        if x.count("a") != y.count("a")
    ]


def weights(model: RewardModel) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_same_score_whatever_the_batch(kind):
    model = reward_model(kind)
    prompts, responses = random_texts(40)
    together = model.raw(prompts, responses)
    alone = [model.raw([p], [r])[0] for p, r in zip(prompts, responses, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, model.raw(prompts, responses, tokens_per_batch=30), atol=1e-5)
    assert np.array_equal(together, model.raw(prompts, responses))
    assert len(set(together.round(4))) > 20


def test_the_score_is_read_at_the_last_real_token():
    model = reward_model()
    ids = model.encode("abc", "de").tolist()
    assert ids == [2, 3, 4, 5, 6, LetterTokenizer.eos_id]
    hidden = model.language_model.hidden(torch.tensor([ids]))[0, -1]
    expected = model.head(hidden)[0].item()
    assert model.scores([ids, ids * 3])[0].item() == pytest.approx(expected, abs=1e-5)


def test_head_begins_small_and_seeded():
    language_model = tiny_language_model(hidden=128)
    first, second = RewardModel(language_model, seed=3), RewardModel(language_model, seed=3)
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, RewardModel(language_model, seed=4).head.weight)
    assert first.head.weight.std().item() == pytest.approx(1 / 129**0.5, rel=0.25)
    assert first.head.bias.item() == 0


def test_too_long_texts_keep_the_end_and_are_counted_once():
    model = RewardModel(tiny_language_model(context=8))
    assert model.encode("abcdefgh", "ijklm").tolist() == [c + 2 for c in range(6, 13)] + [0]
    with pytest.warns(UserWarning, match=r"2 of 3 texts exceed the 8 tokens .* \(the longest has 14\)"):
        model.raw(["abcdefgh", "abcdefgh", "a"], ["ijklm", "ijkl", "b"])
    model.raw(["abcdefgh"], ["ijklm"])  # a second warning would fail: warnings are caught once only
    long = [Preference(p.prompt, p.chosen * 3, p.rejected) for p in likes_a(40) if p.chosen and p.rejected]
    texts = {(p.prompt, r) for p in long for r in (p.chosen, p.rejected)}
    for trunk_layers in (0, -1):
        result = fit(model, long, FitConfig(epochs=1, trunk_layers=trunk_layers))
        assert result.n_texts == len(texts)
        assert result.n_cut == sum(len(p) + len(r) + 1 > 8 for p, r in texts) > 0


def test_learns_what_the_rater_likes():
    steps = []
    model = reward_model()
    result = fit(model, likes_a(400), FIT, on_progress=lambda *step: steps.append(step))
    assert result.accuracy > 0.85
    assert result.standard_error == pytest.approx(
        (result.accuracy * (1 - result.accuracy) / result.n_validation) ** 0.5, rel=0.1
    )
    assert result.loss < 0.5
    assert result.best_epoch >= 2
    assert evaluate(model, likes_a(200, seed=77)).accuracy > 0.85
    done, total, _ = zip(*steps, strict=True)
    assert list(done) == sorted(set(done))
    assert done[-1] == result.n_train * len(result.epochs)
    points = [point["epoch"] for point in result.curve]
    assert points == sorted(set(points))
    assert 0.9 < points[-1] / len(result.epochs) <= 1
    assert np.mean([point["loss"] for point in result.curve if point["epoch"] <= 1]) == pytest.approx(
        result.epochs[0]["train_loss"], abs=0.02
    )
    assert set(total) == {result.n_train * FIT.epochs}
    figures = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert figures["accuracy"] == result.accuracy
    assert set(figures["bins"][0]) == {"confidence", "accuracy", "count"}
    assert set(figures["epochs"][0]) == {"train_loss", "validation_loss", "validation_accuracy"}
    assert sum(b["count"] for b in figures["bins"]) == result.n_validation
    # Left as it was found: no gradients kept, and usable as a reward by the one way to call rewards.
    assert all(p.grad is None for p in model.parameters())
    assert score(model, ["b"] * 2, ["aaaa", "bbbb"], {"label": [1, 2]}).values[0] > 0


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.2}, {"label_smoothing": 0.1, "trunk_layers": 1}])
def test_the_same_seed_gives_the_same_weights(changes):
    first, second = reward_model(), reward_model()
    config = FitConfig(epochs=1, seed=5, **changes)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    fit(first, likes_a(60), config)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    fit(second, likes_a(60), config)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def test_the_size_of_a_forward_pass_does_not_change_the_result():
    preferences = likes_a(60)
    first, second = reward_model(), reward_model()
    fit(first, preferences, FitConfig(epochs=1, learning_rate=3e-4, tokens_per_batch=10_000))
    fit(second, preferences, FitConfig(epochs=1, learning_rate=3e-4, tokens_per_batch=40))
    prompts, responses = random_texts(20)
    np.testing.assert_allclose(first.raw(prompts, responses), second.raw(prompts, responses), atol=1e-4)


def test_the_head_alone_and_the_last_layer():
    model = reward_model()
    before = weights(model)
    fit(model, likes_a(60), FitConfig(epochs=1, trunk_layers=0, head_learning_rate=0.1))
    changed = [not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)]
    assert changed == [False] * (len(changed) - 2) + [True, changed[-1]]
    before = weights(model)
    fit(model, likes_a(60), FitConfig(epochs=1, trunk_layers=1))
    names = [n for n, _ in model.language_model.trunk.named_parameters()]
    moved = [n for n, a, b in zip(names, before, weights(model), strict=False) if not torch.equal(a, b)]
    assert moved
    assert all(n.startswith(("h.1.", "ln_f.")) for n in moved)
    with pytest.raises(ModelError, match="last 9 layers"):
        fit(model, likes_a(60), FitConfig(trunk_layers=9))


def test_a_frozen_trunk_sees_each_text_once(monkeypatch):
    preferences = likes_a(400)
    model = reward_model()
    before = weights(model)
    seen = []
    encode = model.states
    monkeypatch.setattr(model, "states", lambda rows: (seen.extend(rows), encode(rows))[1])
    known, steps = Features(model, precision="float32", tokens_per_batch=200), []
    config = FitConfig(trunk_layers=0, head_learning_rate=0.02, seed=1)
    result = fit(model, preferences, config, features=known, on_features=lambda *step: steps.append(step))
    assert 1 < result.best_epoch < len(result.epochs) < 200
    assert result.accuracy > 0.7
    texts = {(p.prompt, r) for p in preferences for r in (p.chosen, p.rejected)}
    assert len(seen) == len(known) == result.n_texts == len(texts)
    assert steps[-1] == (len(texts), len(texts))
    assert len(steps) > 1
    # Nothing but the head has changed, and it scores the states as they are.
    assert all(torch.equal(a, b) for a, b in zip(before[:-2], weights(model)[:-2], strict=True))
    _, validation = split_by_prompt(preferences, config.validation_fraction, config.seed)
    assert evaluate(model, validation).loss == pytest.approx(result.loss, abs=1e-5)
    # A later fit knows the features; kept in a file they are the same.
    seen.clear()
    scores = model.raw(["ab"], ["cd"])
    seen.clear()
    fit(model, preferences, config, features=known)
    assert not seen
    assert model.raw(["ab"], ["cd"]) == scores
    monkeypatch.setattr(features_module, "IN_MEMORY", 10_000)
    on_disk = Features(model, precision="float32", tokens_per_batch=200)
    on_disk.rows({("a", "b"): None})
    fit(model, preferences, config, features=on_disk)
    assert model.raw(["ab"], ["cd"]) == scores


@pytest.mark.parametrize("loss", ["rao_kupper", "davidson", "plackett_luce", "regression", "ordinal"])
def test_every_loss_learns_what_the_rater_likes(loss):
    model, preferences = reward_model(), likes_a(200)
    ties = [replace(p, rejected=p.chosen[::-1], tie=True) for p in preferences[:40] if p.chosen != p.chosen[::-1]]
    ratings = [
        Rating(p.prompt, r, float(r.count("a")), p.query_id, "ann") for p in preferences for r in (p.chosen, p.rejected)
    ]
    config = FitConfig(loss=loss, trunk_layers=0, head_learning_rate=0.03, epochs=15, patience=15, seed=1)
    result = fit(model, [*preferences, *ties], config, ratings=ratings)
    assert result.accuracy > 0.7
    losses = [epoch["validation_loss"] for epoch in result.epochs]
    assert losses[result.best_epoch - 1] == min(losses) < losses[0]
    prompts = {p.prompt for p in preferences}
    train, _ = split_by_prompt([*preferences, *ties], config.validation_fraction, config.seed)
    trained = prompts & {p.prompt for p in train}
    of_ratings = sum(r.prompt in trained for r in ratings)
    assert result.n_train == (of_ratings if loss in ("regression", "ordinal") else len(train))


def test_a_rater_who_contradicts_the_others_counts_less():
    preferences = likes_a(300)
    said = [
        replace(p, rater="carl", chosen=p.rejected, rejected=p.chosen) if i % 3 == 0 else replace(p, rater="ann")
        for i, p in enumerate(preferences)
    ]
    config = FitConfig(trunk_layers=0, head_learning_rate=0.03, epochs=10, patience=10, rater_weights="learned")
    result = fit(reward_model(), said, config)
    assert result.raters["carl"] < 0.8 < 1.2 < result.raters["ann"]
    assert json.loads(json.dumps(result.as_dict()))["raters"] == result.raters


def test_a_large_trunk_is_frozen_unless_asked_for(monkeypatch):
    model = reward_model()
    before = weights(model)
    monkeypatch.setattr(fit_config, "SMALL_TRUNK", 100)
    in_bfloat16 = fit(model, likes_a(60), FitConfig(precision="bf16"))
    assert all(torch.equal(a, b) for a, b in zip(before[:-2], weights(model)[:-2], strict=True))
    in_float32 = fit(model, likes_a(60), FitConfig(precision="float32"))
    assert in_bfloat16.loss != in_float32.loss
    assert in_bfloat16.loss == pytest.approx(in_float32.loss, abs=0.02)
    fit(model, likes_a(60), FitConfig(trunk_layers=-1))
    assert not torch.equal(before[0], weights(model)[0])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_reads_earlier_layers_and_means(kind, tmp_path):
    whole = tiny_language_model(kind, hidden=16, layers=3)
    rows = [[2, 3, 4, 0], [5, 6, 7, 8, 9, 0], [0]]
    model = RewardModel(tiny_language_model(kind, hidden=16, layers=3), readout=Readout(layers=2, pooling="mean"))
    network: Any = whole.trunk
    norm = network.ln_f if kind == "gpt2" else network.norm
    for row, score_ in zip(rows, model.scores(rows).tolist(), strict=True):
        # The input of the last layer is the output of the one before it.
        states = norm(network(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[2])[0]
        assert score_ == pytest.approx(model.head(states.mean(dim=0)).item(), abs=1e-5)
    answered = RewardModel(tiny_language_model(kind, hidden=16, layers=3), readout=Readout(pooling="response"))
    states = answered.language_model.hidden(torch.tensor([answered.encode("abc", "de")]))[0]
    assert answered.raw(["abc"], ["de"])[0] == pytest.approx(answered.head(states[3:].mean(dim=0)).item(), abs=1e-5)
    both = RewardModel(answered.language_model, readout=Readout(pooling="both"))
    assert both.head.in_features == 32
    expected = torch.cat([states[-1], states[3:].mean(dim=0)])
    mates = both.raw(["abc", "a"], ["de", "defghi"])  # a longer one beside it pads it
    assert mates[0] == pytest.approx(both.head(expected).item(), abs=1e-5)
    both.save(tmp_path / "both")
    assert load(tmp_path / "both").raw(["abc"], ["de"]) == pytest.approx(mates[:1], abs=1e-5)
    assert answered.encode("abc" * 20, "de" * 40).num_response == 64  # a response longer than the context fills it
    with pytest.raises(ModelError, match="no score before one begins"):
        answered.prefix_scores(rows)
    prefixes = model.prefix_scores(rows)
    assert [values[-1] for values in prefixes] == pytest.approx(model.scores(rows).tolist(), abs=1e-5)
    assert prefixes[1][2] == pytest.approx(model.scores([rows[1][:3]]).item(), abs=1e-5)
    model.save(tmp_path / "rm")
    other = load(tmp_path / "rm")
    assert other.readout == model.readout
    assert torch.equal(other.scores(rows), model.scores(rows))
    with pytest.raises(ModelError, match="after 9 layers: it has 3"):
        RewardModel(whole, readout=Readout(layers=9))


def test_keeps_the_best_epoch_and_stops_early():
    preferences = likes_a(60)
    model = reward_model()
    # Far too large a learning rate: the loss rises after some epoch.
    config = FitConfig(learning_rate=0.05, epochs=30, patience=1, batch_size=4, seed=3)
    result = fit(model, preferences, config)
    losses = [epoch["validation_loss"] for epoch in result.epochs]
    assert len(losses) < 30
    assert result.best_epoch == int(np.argmin(losses)) + 1
    assert len(losses) == result.best_epoch + 1
    _, validation = split_by_prompt(preferences, config.validation_fraction, config.seed)
    assert evaluate(model, validation).loss == pytest.approx(min(losses), abs=1e-6)


def mean_distance(model: RewardModel, preferences: list[Preference]) -> float:
    prompts = [p.prompt for p in preferences]
    chosen, rejected = ([getattr(p, side) for p in preferences] for side in ("chosen", "rejected"))
    return float(np.abs(model.raw(prompts, chosen) - model.raw(prompts, rejected)).mean())


def test_the_held_out_loss_is_measured_without_dropout():
    preferences = likes_a(120)
    known = {p.prompt for p in preferences}
    held_out = [p for p in likes_a(60, seed=999) if p.prompt not in known]
    model = reward_model()
    result = fit(model, preferences, FitConfig(epochs=1, dropout=0.5), validation=held_out)
    assert evaluate(model, held_out).loss == pytest.approx(result.epochs[0]["validation_loss"], abs=1e-6)


def test_ties_pull_scores_together():
    ties = [Preference(p.prompt, p.chosen, p.rejected, tie=True) for p in likes_a(200)]
    model = reward_model()
    before = mean_distance(model, ties)
    result = fit(model, ties, FIT)
    assert mean_distance(model, ties) < before / 3
    assert result.n_validation == 0
    assert result.as_dict()["accuracy"] is None
    assert result.loss == pytest.approx(np.log(2), abs=0.02)


def test_interrupted_fit_leaves_no_gradients_and_no_dropout():
    model = reward_model()
    flags = [p.requires_grad for p in model.parameters()]

    def interrupt(done: int, total: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, likes_a(60), FitConfig(dropout=0.3, trunk_layers=1), on_progress=interrupt)
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m.training for m in model.language_model.trunk.modules() if isinstance(m, torch.nn.Dropout))
    assert np.array_equal(model.raw(["a"], ["b"]), model.raw(["a"], ["b"]))


def test_a_loss_that_is_not_finite():
    model = reward_model()
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match="loss is nan after 0 comparisons; lower its learning_rate"):
        fit(model, likes_a(60), FIT)


def test_too_few_preferences_or_a_prompt_on_both_sides():
    model = reward_model()
    with pytest.raises(FeedbackError, match="at least 2 prompts"):
        fit(model, [])
    preferences = likes_a(40)
    with pytest.raises(FeedbackError, match="in the training and in the validation"):
        fit(model, preferences, validation=preferences[:3])
    with pytest.raises(FeedbackError, match="to fit and to validate; got 0 and"):
        fit(model, [], validation=preferences[:3])


def test_normalise():
    model = reward_model()
    prompts, responses = random_texts(50)
    model.normalise(prompts, responses)
    values = np.array(model(prompts, responses))
    assert values.mean() == pytest.approx(0, abs=1e-6)
    assert values.std() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(values, model.raw(prompts, responses) * model.gain + model.bias)
    for few in ([], ["a"], ["a", "a"]):
        with pytest.raises(ModelError, match="differ in score"):
            model.normalise(few, few)


def saved(tmp_path, seed=0):
    model = reward_model(seed=seed)
    model.normalise(*random_texts(20))
    model.save(tmp_path / "rm")
    return model


def load(path):
    return RewardModel.load(path, device="cpu", tokenizer=LetterTokenizer())


def test_saved_and_loaded(tmp_path):
    model = saved(tmp_path)
    other = load(tmp_path / "rm")
    prompts, responses = random_texts(20, seed=5)
    assert model(prompts, responses) == other(prompts, responses)
    files = {f.name for f in (tmp_path / "rm").iterdir()}
    assert {"reward_model.json", "head.safetensors", "model.safetensors", "config.json"} <= files
    assert not [f for f in files if f.endswith((".bin", ".pt", ".pkl"))]
    assert [f.name for f in tmp_path.iterdir()] == ["rm"]
    (tmp_path / "plain").mkdir()  # as open as any folder made here, not closed like a temporary one
    assert (tmp_path / "rm").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "plain").rmdir()
    saved(tmp_path, seed=1)  # replaces
    assert load(tmp_path / "rm")(prompts, responses) != model(prompts, responses)
    assert [f.name for f in tmp_path.iterdir()] == ["rm"]


def test_files_that_do_not_belong_together(tmp_path):
    saved(tmp_path / "one")
    saved(tmp_path / "two", seed=1)
    rm = tmp_path / "one" / "rm"
    for name in ("model.safetensors", "head.safetensors"):
        kept = (rm / name).read_bytes()
        shutil.copy(tmp_path / "two" / "rm" / name, rm / name)
        with pytest.raises(ModelError, match="do not belong together: the model scores"):
            load(rm)
        (rm / name).write_bytes(kept)
    load(rm)
    save_file({"weight": torch.zeros(1, 7), "bias": torch.zeros(1)}, rm / "head.safetensors")
    with pytest.raises(ModelError, match=r"head in .* has the shapes"):
        load(rm)
    data = json.loads((rm / "reward_model.json").read_text())
    (rm / "reward_model.json").write_text(json.dumps(data | {"hidden_size": 99}))
    with pytest.raises(ModelError, match=r"hidden_size 16, reward_model\.json says 99"):
        load(rm)
    (rm / "reward_model.json").write_text(json.dumps(data | {"format": 2}))
    with pytest.raises(ModelError, match="format 2; this version of rlhf-gym reads 1"):
        load(rm)


def test_folders_that_are_no_reward_model(tmp_path):
    with pytest.raises(ModelError, match="there is no reward model in"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="not a whole reward model"):
        load(tmp_path)
    saved(tmp_path)
    head = tmp_path / "rm" / "head.safetensors"
    head.write_bytes(head.read_bytes()[:20])
    with pytest.raises(ModelError, match="not a whole reward model"):
        load(tmp_path / "rm")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_save_leaves_the_older_one(tmp_path, monkeypatch, error):
    model = saved(tmp_path)
    head = load_file(tmp_path / "rm" / "head.safetensors")

    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ModelError) as caught:
        reward_model(seed=9).save(tmp_path / "rm")
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
    assert [f.name for f in tmp_path.iterdir()] == ["rm"]
    assert torch.equal(head["weight"], load(tmp_path / "rm").head.weight)
    assert load(tmp_path / "rm")(["a"], ["b"]) == model(["a"], ["b"])
