"""Which questions are asked: the values by hand, schedules, the ensemble, and a run of the loop for each way to choose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import save_tiny_model, tiny_settings

from rlhf_gym.errors import ConfigError
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.questions import BY_ENSEMBLE, highest, k_center, labels_of_rounds
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.reward_model.head_ensemble import fit_heads, pair_probabilities


def test_each_way_to_choose_by_hand() -> None:
    # Two members, four queries: both sure; both a coin; sure of opposite answers; both lean the same way.
    p = np.array([[[0.9], [0.5], [0.95], [0.7]], [[0.9], [0.5], [0.05], [0.6]]])
    first = {name: int(value(p).argmax()) for name, value in BY_ENSEMBLE.items()}
    assert first == {"disagreement": 2, "margin": 1, "entropy": 1, "information": 2}
    assert BY_ENSEMBLE["disagreement"](p) == pytest.approx([0, 0, 0.45**2, 0.05**2])
    assert BY_ENSEMBLE["margin"](p) == pytest.approx([-0.4, 0, 0, -0.15])
    h = lambda q: -q * np.log(q) - (1 - q) * np.log(1 - q)  # noqa: E731
    assert BY_ENSEMBLE["entropy"](p) == pytest.approx([h(0.9), h(0.5), h(0.5), h(0.65)])
    assert BY_ENSEMBLE["information"](p) == pytest.approx([0, 0, h(0.5) - h(0.95), h(0.65) - (h(0.7) + h(0.6)) / 2])
    # Three responses are three pairs.
    assert pair_probabilities(np.array([[[0.0, 0.0, 50.0]]])).round(6).tolist() == [[[0.5, 0.0, 0.0]]]
    rng = np.random.default_rng(0)
    assert highest(np.array([1.0, 3.0, 2.0]), 2, rng) == [1, 2]
    assert len({tuple(highest(np.zeros(9), 1, rng)) for _ in range(50)}) > 5  # chance decides between equals
    line = np.array([[0.0], [1.0], [5.0], [9.0], [9.0]])
    assert k_center(line, 3, line[:1], rng) == [1, 2, 3]
    assert len(k_center(line, 5, np.zeros((0, 1)), rng)) == 5


def test_schedules_divide_all_labels() -> None:
    assert labels_of_rounds(12, 3, "constant") == [4, 4, 4]
    assert labels_of_rounds(13, 3, "constant") == [5, 4, 4]
    assert labels_of_rounds(14, 3, "inverse") == [7, 4, 3]  # 1 each, and 11 as 6 : 3 : 2
    assert labels_of_rounds(3 + 47, 3, "hyperbolic") == [21, 16, 13]  # 47 as 1 : 3/4 : 3/5
    assert labels_of_rounds(3, 3, "inverse") == [1, 1, 1]


def test_heads_learn_and_differ_where_nothing_was_compared() -> None:
    # All comparisons are about the first feature: the heads agree there, and know nothing of the second.
    differences = torch.zeros(200, 2)
    differences[:, 0] = 1.0
    heads = fit_heads(differences, torch.zeros(200, dtype=torch.bool), 8)
    assert (heads[:, 0] > 1).all()
    assert heads[:, 1].abs().max() < 1e-6
    assert heads[:, 0].std() > 0
    # One head by hand: the gradient 200 g sigmoid(-w) = D w, with one comparison of weight g.
    one = fit_heads(torch.ones(1, 1), torch.tensor([False]), 1, seed=3)[0, 0]
    weight = np.random.default_rng(3).exponential(size=(1, 1))[0, 0]
    assert float(weight * torch.sigmoid(-one)) == pytest.approx(float(one), abs=1e-5)
    assert fit_heads(torch.ones(1, 1), torch.tensor([True]), 1).abs().max() < 1e-6  # a tie draws to neither side


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("select", "query_type"),
    [("disagreement", "ranking"), ("information", "pair"), ("k_center", "best"), ("fresh", "pair")],
)  # fmt: skip
def test_a_run_asks_the_chosen_questions(model: Path, tmp_path: Path, select: str, query_type: str) -> None:
    config = build(
        tiny_settings(
            model,
            run={"rounds": 2, "threads": 1},
            rater={"select": select, "labels": 18, "schedule": "inverse", "query_type": query_type},
            agent={"iterations": 1, "checkpoint_every": 1, "learning_rate": 0.01},
        )
    )
    run = run_loop(config, tmp_path / "run", progress=Progress(quiet=True), stages=("sample", "label", "fit", "train"))
    with FeedbackStore(run.store_file) as store:
        first = store.queries(1)
        assert [query.index for query in first] == list(range(12))
        assert store.count(1).judgements == 12
    written = json.loads((run.path / "round-2" / "selected.json").read_text())
    assert (written["select"], written["of"], len(written["queries"])) == (select, 12, 6)
    samples = [json.loads(line) for line in (run.path / "round-2" / "samples.jsonl").read_text().splitlines()]
    with FeedbackStore(run.store_file) as store:
        asked = store.queries(2)
        assert store.count(2).judgements == 6
    assert [query.responses for query in asked] == [
        (samples[2 * place]["response"], samples[2 * place + 1]["response"]) for place in written["queries"]
    ]


@pytest.mark.parametrize(
    ("rater", "why"),
    [
        (
            {"select": "margin", "schedule": "inverse"},
            r"rater\.select and rater\.schedule choose among .* give rater\.labels",
        ),
        ({"labels": 1}, r"rater\.labels \(1\) must be at least run\.rounds \(2\)"),
        ({"labels": 30}, r"puts 15 queries into one round, and its candidates make 12"),
        ({"labels": 4, "select": "entropy", "query_type": "thumbs", "name": "web"}, "a thumbs query has one"),
    ],
)
def test_what_cannot_be_chosen_is_refused(model: Path, rater: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        build(tiny_settings(model, run={"rounds": 2}, rater=rater))
