"""Trains the sentiment judge: convolutional networks on sub-words, characters, and what is no running English.

    python benchmarks/embedded_model/train_judge.py --out rlhf_gym/embedded/judge [--data movie_reviews.zip]

Praise is learned from pieces of human reviews that carry their review's label; running English from such pieces and from what
the embedded language model samples, against the attacks of ``attacks.py``. Both are calibrated on the validation reviews.
Prints the metrics of the model card as JSON: on the test reviews, and on attacks on samples that were not trained on.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attacks import Attacks
from data import Review, load_reviews, split_reviews
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from train_scorer import snippets

from rlhf_gym.lm.decoding import generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.rewards.builtin.sentiment_judge import BUCKETS, WIDTHS, Network, SentimentJudge, buckets
from rlhf_gym.rewards.builtin.sentiment_scorer import SentimentScorer
from rlhf_gym.tasks.samples import is_held_out
from rlhf_gym.tasks.sentiment import prompt_prefixes

PAD = 1
MOST_IDS = 64
WIDTH, FILTERS = 32, 32
Passage = tuple[str, str]
"""A prompt, and what follows it."""
Labelled = tuple[list[str], bool]
"""A review's sentences, and True for praise."""


class TwoHeads(nn.Module):
    """The network of :class:`rlhf_gym.rewards.builtin.sentiment_judge.Network`, to be trained.

    Args:
        vocabulary: number of sub-words.
        width: of their embedding.
        filters: of each width.
    """

    def __init__(self, vocabulary: int, width: int, filters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, filters, w) for w in WIDTHS)
        self.head = nn.Linear(2 * filters * len(WIDTHS), 2)
        self.drop_in, self.drop_out = nn.Dropout(0.3), nn.Dropout(0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Log-odds of praise and of running English.

        Args:
            ids: int64 ``[N, L]``, padded with :data:`PAD` to at least the widest filter.

        Returns:
            float32 ``[N, 2]``.
        """
        known = ids != PAD
        states = (self.drop_in(self.embedding(ids)) * known[..., None]).transpose(1, 2)
        pooled = []
        for w, convolution in zip(WIDTHS, self.convolutions, strict=True):
            answers = convolution(states).relu()
            # A window counts where its last sub-word is one; a text shorter than the widest filter has one window more.
            valid = known[:, w - 1 :] if w > 1 else known
            short = known.sum(1) < max(WIDTHS)
            valid = valid | (short[:, None] & (torch.arange(valid.shape[1]) < max(WIDTHS) - w + 1))
            answers = answers * valid[:, None]
            pooled += [answers.amax(-1), answers.sum(-1) / valid.sum(-1, keepdim=True)]
        out: Tensor = self.head(self.drop_out(torch.cat(pooled, 1)))
        return out

    def arrays(self) -> dict[str, NDArray[np.float16]]:
        """The weights as :class:`Network` takes them."""
        found = {"embedding": self.embedding.weight, "head": self.head.weight.T, "head_bias": self.head.bias}
        for w, convolution in zip(WIDTHS, self.convolutions, strict=True):
            found[f"filter_{w}"] = convolution.weight.permute(2, 1, 0).reshape(-1, convolution.out_channels)
            found[f"bias_{w}"] = convolution.bias
        return {name: np.ascontiguousarray(values.detach().half().numpy()) for name, values in found.items()}


def sampled(model: LanguageModel, number: int, temperature: float, seed: int) -> list[Passage]:
    """Samples of the embedded model on the sentiment task's training prompts.

    Args:
        model: the embedded model.
        number: how many.
        temperature: 1 gives honest samples, far above it gives salad.
        seed: of the noise.
    """
    prompts = [p for p in prompt_prefixes() if not is_held_out(p)]
    chosen = [prompts[i] for i in np.random.default_rng(seed).integers(len(prompts), size=number)]
    limits = Limits.of(model.tokenizer, 0, 32)
    ids = [model.tokenizer.encode_prompt(p) for p in chosen]
    found = generate(model, ids, limits, sampling=Sampling(temperature), seed=seed, batch_size=128)
    return [(prompt, one.text) for prompt, one in zip(chosen, found, strict=True)]


def readable(reviews: list[Review]) -> list[Labelled]:
    """The reviews' sentences as one would type them, each review with its label."""
    return [(review.text(), review.positive) for review in reviews]


def pieces(reviews: list[Labelled], number: int, rng: np.random.Generator) -> tuple[list[Passage], list[bool]]:
    """Pieces of reviews cut as a prompt and what follows, and their reviews' labels.

    Args:
        reviews: reviews to cut.
        number: how many.
        rng: source of places and lengths.
    """
    found, labels = [], []
    for _ in range(number):
        sentences, positive = reviews[int(rng.integers(len(reviews)))]
        begin = int(rng.integers(len(sentences)))
        words = " ".join(sentences[begin : begin + 4]).split(" ")
        before, length = int(rng.integers(3, 9)), int(rng.integers(3, 36))
        if len(words) <= before:
            continue
        found.append((" ".join(words[:before]), " ".join(words[before : before + length])))
        labels.append(positive)
    return found, labels


def batch(tokenizer: Any, texts: list[str]) -> Tensor:
    """Texts as padded ids, int64 ``[N, L]``.

    Args:
        tokenizer: the embedded model's.
        texts: ``N`` texts.
    """
    encoded = tokenizer.hub.backend_tokenizer.encode_batch([text.lower() for text in texts], add_special_tokens=False)
    ids = [one.ids[:MOST_IDS] for one in encoded]
    out = torch.full((len(ids), max(max(map(len, ids)), max(WIDTHS))), PAD)
    for row, one in zip(out, ids, strict=True):
        row[: len(one)] = torch.tensor(one, dtype=torch.int64)
    return out


def characters(texts: list[str], labels: list[bool], weights: list[float], strength: float) -> NDArray[np.float16]:
    """Log-odds of the character n-grams, float16 ``[BUCKETS]``.

    Args:
        texts: ``n`` texts.
        labels: ``n`` labels, True for praise.
        weights: ``n`` weights.
        strength: scikit-learn's ``C``.
    """
    found = [buckets(text) for text in texts]
    places = np.cumsum([0, *map(len, found)])
    values = np.concatenate([np.full(len(f), max(1, len(f)) ** -0.5) for f in found])
    inputs = csr_matrix((values, np.concatenate(found), places), shape=(len(texts), BUCKETS))
    model = LogisticRegression(C=strength, max_iter=200, solver="liblinear").fit(inputs, labels, sample_weight=weights)
    weights_found: NDArray[np.float16] = model.coef_[0].astype(np.float16)
    return weights_found


def train_network(
    seed: int, tokenizer: Any, reviews: list[Labelled], honest: list[Passage], salad: list[Passage], attacks: Attacks,
    steps: int,
) -> dict[str, NDArray[np.float16]]:  # fmt: skip
    """Train one network.

    Args:
        seed: of its weights and data.
        tokenizer: the embedded model's.
        reviews: the training reviews.
        honest: samples of the embedded model.
        salad: its samples at high temperatures.
        attacks: draws attacks.
        steps: of 140 texts.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = TwoHeads(4096, WIDTH, FILTERS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss_of = nn.functional.binary_cross_entropy_with_logits
    for step in range(steps):
        human, labels = pieces(reviews, 56, rng)
        good = [*human[:28], *(honest[i] for i in rng.integers(len(honest), size=14))]
        bad = [(p, attacks.draw(rng, p, r)[1]) for p, r in (good[i] for i in rng.integers(len(good), size=36))]
        bad += [salad[i] for i in rng.integers(len(salad), size=6)]
        whole = [f"{p} {r.strip()}" for p, r in [*good, *bad]]
        natural = torch.tensor([1.0] * len(good) + [0.0] * len(bad))
        out = model(batch(tokenizer, [r for _, r in human] + whole))
        praise = loss_of(out[: len(human), 0], torch.tensor(labels, dtype=torch.float32))
        loss = praise + loss_of(out[len(human) :, 1], natural)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(f"network {seed} step {step}: praise {praise:.3f}, both {loss:.3f}", flush=True)
    return model.eval().arrays()


def ece(probabilities: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Expected calibration error over ten bins of equal width.

    Args:
        probabilities: float ``[n]``.
        labels: bool ``[n]``.
    """
    places = np.minimum((probabilities * 10).astype(int), 9)
    return float(sum(abs((labels[places == b] - probabilities[places == b]).sum()) for b in range(10)) / len(labels))


def main() -> None:
    """Train, calibrate, save, and print the metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="movie_reviews.zip (default: NLTK downloads it)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--samples", type=int, default=800)
    args = parser.parse_args()

    train, valid, test = split_reviews(load_reviews(args.data))
    lm = LanguageModel.load("embedded", device="cpu")
    honest, fresh = sampled(lm, args.samples, 1.0, 1), sampled(lm, args.samples // 5, 1.0, 2)
    salad, fresh_salad = sampled(lm, args.samples // 2, 2.5, 3), sampled(lm, args.samples // 10, 2.5, 4)
    print(f"{len(honest)} samples, e.g. {honest[0]}; salad: {salad[0]}", flush=True)

    counts = {
        label: Counter(w for r in train if r.positive == label for w in set(" ".join(r.text()).split()))
        for label in (True, False)
    }
    seen = [w for w in counts[True] | counts[False] if w.isalpha() and counts[True][w] + counts[False][w] >= 15]
    odds = {w: np.log((counts[True][w] + 1) / (counts[False][w] + 1)) for w in seen}
    ordered = sorted(odds, key=lambda w: (odds[w], w))
    common = [w for r in train[:200] for w in " ".join(r.text()).split()]
    tokens = [lm.tokenizer.decode([i]) for i in range(2, 4096)]
    attacks = Attacks([*ordered[-300:], *ordered[:100]], common, tokens)

    networks = [
        train_network(seed, lm.tokenizer, readable(train), honest, salad, attacks, args.steps)
        for seed in range(args.networks)
    ]
    short, short_labels = snippets(train, np.random.default_rng(0))
    cut, cut_labels = pieces(readable(train), 30000, np.random.default_rng(5))
    whole = [" ".join(r.text()) for r in train]
    texts = [*short, *(r for _, r in cut), *whole]
    weights = [1.0] * (len(short) + len(cut)) + [5.0] * len(whole)
    letters = characters(texts, [*short_labels, *cut_labels, *(r.positive for r in train)], weights, 1.0)

    judge = SentimentJudge([Network(n) for n in networks], letters, (1.0, 0.0, 0.0), (1.0, 0, 0, 0, 0, 0), lm)
    # Calibrated on lengths like those of responses.
    checked, checked_labels = pieces(readable(valid), 4000, np.random.default_rng(6))
    features = np.stack(judge.praise_features([r for _, r in checked], lm.tokenizer), 1)
    praise = LogisticRegression(C=10.0).fit(features, checked_labels)
    rng = np.random.default_rng(7)
    known = [*checked[:600], *fresh[: len(fresh) // 2]]
    bad = [(p, attacks.draw(rng, p, r)[1]) for p, r in known] + fresh_salad[: len(fresh_salad) // 2]
    rows = judge.natural_features([p for p, _ in [*known, *bad]], [r for _, r in [*known, *bad]])
    natural = LogisticRegression(C=1.0, max_iter=2000).fit(rows, [1] * len(known) + [0] * len(bad))
    praise_weights = [*praise.coef_[0].round(4).tolist(), round(float(praise.intercept_[0]), 4)]
    natural_weights = [*natural.coef_[0].round(4).tolist(), round(float(natural.intercept_[0]), 4)]

    args.out.mkdir(parents=True, exist_ok=True)
    stored = {f"{i}.{name}": values for i, network in enumerate(networks) for name, values in network.items()}
    save_file({**stored, "characters": letters}, args.out / "weights.safetensors")
    found = {"networks": len(networks), "praise": praise_weights, "natural": natural_weights}
    (args.out / "judge.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(
        json.dumps(
            metrics(args.out, test, fresh[len(fresh) // 2 :], fresh_salad[len(fresh_salad) // 2 :], attacks), indent=2
        )
    )


def metrics(
    folder: Path, test: list[Review], fresh: list[Passage], salad: list[Passage], attacks: Attacks
) -> dict[str, object]:
    """The judge's metrics, next to the scorer's.

    Args:
        folder: the judge's folder.
        test: the test reviews.
        fresh: honest samples that it was not trained on.
        salad: samples at a high temperature, likewise.
        attacks: draws attacks.
    """
    judge, scorer = SentimentJudge.load(folder), SentimentScorer.embedded()
    texts, labels = snippets(test, np.random.default_rng(1))
    cut, cut_labels = pieces(readable(test), 3000, np.random.default_rng(8))
    truth, cut_truth = np.array(labels), np.array(cut_labels)
    praise, _ = judge.probabilities([""] * len(texts), texts)
    cut_praise, natural = judge.probabilities([p for p, _ in cut], [r for _, r in cut])
    both = (praise > 0.5) == truth
    score = scorer.score(texts)
    out: dict[str, object] = {
        "snippets": len(texts), "snippet_accuracy": float(both.mean()),
        "scorer_snippet_accuracy": float(((score > 0) == truth).mean()),
        "same_verdict_on_snippets": float(((praise > 0.5) == (score > 0)).mean()),
        "piece_accuracy": float(((cut_praise > 0.5) == cut_truth).mean()), "piece_ece": ece(cut_praise, cut_truth),
        "scorer_piece_accuracy": float(((scorer.score([r for _, r in cut]) > 0) == cut_truth).mean()),
        "human_natural": float((natural > 0.5).mean()),
    }  # fmt: skip
    honest_judge = np.array(judge([p for p, _ in fresh], [r for _, r in fresh]))
    honest_scorer = scorer.score([r for _, r in fresh])
    _, natural = judge.probabilities([p for p, _ in fresh], [r for _, r in fresh])
    out["sample_natural"] = float((natural > 0.5).mean())
    rng = np.random.default_rng(9)
    kinds = {name: [(p, make(rng, p, r)) for p, r in fresh] for name, make in attacks.kinds.items()} | {
        "high temperature": salad
    }
    out["attacks"] = {
        name: {
            "beats_honest_by_judge": wins(np.array(judge([p for p, _ in bad], [r for _, r in bad])), honest_judge),
            "beats_honest_by_scorer": wins(scorer.score([r for _, r in bad]), honest_scorer),
        }
        for name, bad in kinds.items()
    }
    return out


def wins(bad: NDArray[np.float64], honest: NDArray[np.float64]) -> float:
    """The share of pairs in which an attack scores higher than an honest sample, ties counted half.

    Args:
        bad: scores of attacks.
        honest: scores of honest samples; with as many, pairs are of one prompt, else all pairs count.
    """
    if len(bad) == len(honest):
        return float(((bad > honest) + 0.5 * (bad == honest)).mean())
    return float(((bad[:, None] > honest) + 0.5 * (bad[:, None] == honest)).mean())


if __name__ == "__main__":
    main()
