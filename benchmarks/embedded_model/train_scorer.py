"""Trains the embedded sentiment scorer: logistic regression on words and word pairs of film reviews.

    python benchmarks/embedded_model/train_scorer.py --out rlhf_gym/embedded/sentiment [--data movie_reviews.zip]

It learns from whole reviews and from snippets of one to three sentences that carry their review's label, since it is to score
continuations of some 30 words. Prints the metrics of the model card as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
from data import Review, load_reviews, split_reviews
from safetensors.numpy import save_file
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from rlhf_gym.rewards.builtin.sentiment_scorer import SentimentScorer, features

STRENGTHS = (0.3, 1.0, 3.0, 10.0)  # values tried for scikit-learn's C, chosen on the validation split
DOCUMENT_WEIGHT = 5.0  # a whole review says more about its label than a snippet


def snippets(reviews: list[Review], rng: np.random.Generator) -> tuple[list[str], list[bool]]:
    """Consecutive snippets of one to three sentences, and their reviews' labels.

    Args:
        reviews: reviews to cut.
        rng: source of the lengths.
    """
    texts, labels = [], []
    for review in reviews:
        sentences = review.text()
        i = 0
        while i < len(sentences):
            n = int(rng.integers(1, 4))
            texts.append(" ".join(sentences[i : i + n]))
            labels.append(review.positive)
            i += n
    return texts, labels


def matrix(texts: list[str], index: dict[str, int]) -> csr_matrix:
    """Presence of each known feature, every row of length 1.

    Args:
        texts: ``n`` texts.
        index: column of each feature.
    """
    rows, columns, values = [], [], []
    for row, text in enumerate(texts):
        known = sorted(index[f] for f in features(text) if f in index)
        rows += [row] * len(known)
        columns += known
        values += [max(1, len(known)) ** -0.5] * len(known)
    return csr_matrix((values, (rows, columns)), shape=(len(texts), len(index)))


def accuracy(scorer: SentimentScorer, texts: list[str], labels: list[bool]) -> float:
    """Share of texts whose score has the label's sign.

    Args:
        scorer: the scorer.
        texts: ``n`` texts.
        labels: ``n`` labels, True for praise.
    """
    return float(np.mean((scorer.score(texts) > 0) == np.array(labels)))


def main() -> None:
    """Train, choose, save, and print the metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="movie_reviews.zip (default: NLTK downloads it)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--features", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    train, valid, test = split_reviews(load_reviews(args.data))
    rng = np.random.default_rng(args.seed)
    short, short_labels = snippets(train, rng)
    whole = [" ".join(r.text()) for r in train]
    counts = Counter(f for text in whole for f in features(text))
    chosen = sorted(f for f, _ in counts.most_common(args.features))
    inputs = matrix(short + whole, {f: i for i, f in enumerate(chosen)})
    labels = np.array(short_labels + [r.positive for r in train])
    importance = np.array([1.0] * len(short) + [DOCUMENT_WEIGHT] * len(whole))

    held = {name: snippets(part, np.random.default_rng(1)) for name, part in (("valid", valid), ("test", test))}
    documents = {name: ([" ".join(r.text()) for r in part], [r.positive for r in part])
                 for name, part in (("valid", valid), ("test", test))}  # fmt: skip
    best: tuple[float, float, SentimentScorer, np.ndarray, float] | None = None
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=300).fit(inputs, labels, sample_weight=importance)
        weights, bias = model.coef_[0].astype(np.float16), float(model.intercept_[0])
        scorer = SentimentScorer(weights, bias, chosen)
        result = accuracy(scorer, *documents["valid"]) + accuracy(scorer, *held["valid"])
        print(f"C {strength}: documents + snippets {result:.4f}", flush=True)
        if best is None or result > best[0]:
            best = (result, strength, scorer, weights, bias)
    assert best is not None
    _, strength, scorer, weights, bias = best
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({"weights": weights}, args.out / "weights.safetensors")
    (args.out / "vocabulary.json").write_text(json.dumps({"bias": bias, "features": chosen}), encoding="utf-8")
    scores = scorer.score(held["test"][0])
    metrics = {
        "C": strength,
        "document_accuracy": accuracy(scorer, *documents["test"]),
        "documents": len(documents["test"][0]),
        "snippet_accuracy": accuracy(scorer, *held["test"]),
        "snippets": len(held["test"][0]),
        "snippet_score_deciles": np.quantile(scores, [0.1, 0.5, 0.9]).round(2).tolist(),
    }
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
