"""The embedded model's trainer and its 3-gram baseline, on a tiny corpus made here."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from waiting import LONG, wait_until

ROOMS = Path(__file__).resolve().parents[1] / "benchmarks" / "embedded_model"
STEPS, SAVE_EVERY = 300, 20


def tiny_corpus(path: Path) -> Path:
    """Eight reviews of made-up sentences in the corpus's form."""
    rng = random.Random(0)
    nouns, verbs = ["film", "plot", "actor", "scene"], ["delights", "bores", "moves", "amuses"]
    with zipfile.ZipFile(path, "w") as archive:
        for label in ("pos", "neg"):
            for i in range(4):
                lines = [f'the {rng.choice(nouns)} {rng.choice(verbs)} " us " , i think . \n' for _ in range(12)]
                archive.writestr(f"movie_reviews/{label}/cv{i:03}.txt", "".join(lines))
    return path


def command(corpus: Path, folder: Path) -> list[str]:
    return [
        sys.executable, str(ROOMS / "train_lm.py"), "--data", str(corpus), "--work", str(folder / "work"),
        "--out", str(folder / "out"), "--layers", "1", "--width", "16", "--heads", "2", "--vocab", "300", "--context", "32",
        "--batch", "2", "--steps", str(STEPS), "--save-every", str(SAVE_EVERY), "--threads", "1",
    ]  # fmt: skip


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    corpus = tiny_corpus(tmp_path / "movie_reviews.zip")
    whole_run = subprocess.Popen(command(corpus, tmp_path / "whole"), stdout=subprocess.DEVNULL)

    killed = tmp_path / "killed"
    process = subprocess.Popen(command(corpus, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    saved = killed / "work" / "checkpoint.pt"
    wait_until(lambda: saved.exists() or process.poll() is not None, "the first checkpoint")
    process.kill()
    process.wait()
    reached = torch.load(saved, weights_only=True)["step"]
    assert 0 < reached < STEPS, "the run was over before it could be killed: give it more steps"
    resumed = subprocess.run(command(corpus, killed), check=True, capture_output=True, text=True)
    assert f"going on from step {reached}" in resumed.stdout
    assert whole_run.wait(LONG) == 0

    whole, again = (load_file(tmp_path / n / "out" / "model.safetensors") for n in ("whole", "killed"))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "work" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(SAVE_EVERY, STEPS + 1, SAVE_EVERY))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["valid_perplexity_per_word"] < 10


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules; forgotten afterwards, since `data` is anybody's name."""
    monkeypatch.syspath_prepend(str(ROOMS))
    import data
    import ngram

    yield {"data": data, "ngram": ngram}
    for name in ("data", "ngram"):
        sys.modules.pop(name, None)


def test_text_reads_as_typed(rooms: dict[str, ModuleType]) -> None:
    detokenise = rooms["data"].detokenise
    assert detokenise("it's a great film , isn't it ?") == "it's a great film, isn't it?"
    assert detokenise('he said " no " ( twice ) . . . and left .') == 'he said "no" (twice)... and left.'
    assert detokenise("a writer / director costs $2 million") == "a writer/director costs $2 million"


def test_the_split_is_by_review_and_label(rooms: dict[str, ModuleType], tmp_path: Path) -> None:
    data = rooms["data"]
    reviews = data.load_reviews(tiny_corpus(tmp_path / "movie_reviews.zip"))
    parts = data.split_reviews(reviews)
    assert sorted(r.name + str(r.positive) for part in parts for r in part) == sorted(
        r.name + str(r.positive) for r in reviews
    )
    assert [sum(r.positive for r in part) for part in parts] == [2, 1, 1]
    assert parts == data.split_reviews(reviews)


def test_copies_of_training_reviews_are_dropped(rooms: dict[str, ModuleType]) -> None:
    data = rooms["data"]
    sentences = tuple(f"this is the long sentence number {i} of the review ." for i in range(8))
    train = [data.Review("a", True, sentences)]
    other = tuple(s.replace("long", "other") for s in sentences)
    copy, quarter, fresh = (data.Review("b", True, sentences[:n] + other[n:]) for n in (3, 2, 0))
    assert data.drop_copies([copy, quarter, fresh], train) == [quarter, fresh]


def test_kneser_ney_is_a_distribution(rooms: dict[str, ModuleType]) -> None:
    ngram = rooms["ngram"]
    rng = random.Random(1)
    sequences = [[rng.choice("aaabbcdef") for _ in range(rng.randrange(9))] for _ in range(60)]
    vocabulary = {*"abcdefgh", ngram.END}  # g and h never occur
    model = ngram.KneserNey(sequences, vocabulary)
    for history in [("a", "b"), (ngram.START, ngram.START), (ngram.START, "c"), ("g", "a"), ("g", "h")]:
        probabilities = [model.probability(history, word) for word in vocabulary]
        assert min(probabilities) > 0
        assert math.isclose(sum(probabilities), 1.0, rel_tol=1e-12)
    seen, unseen = model.probability(("a", "a"), "a"), model.probability(("a", "a"), "h")
    assert seen > 5 * unseen


def test_kneser_ney_discounts_by_hand(rooms: dict[str, ModuleType]) -> None:
    # n1 = 4, n2 = 2, n3 = 1, n4 = 1: Y = 4 / (4 + 2*2) = 1/2.
    found = rooms["ngram"].discounts([1, 1, 1, 1, 2, 2, 3, 4])
    # D1 = 1 - 2Y*n2/n1 = 1/2, D2 = 2 - 3Y*n3/n2 = 5/4, D3+ = 3 - 4Y*n4/n3 = 1
    assert found == (0.5, 1.25, 1.0)
