"""The baseline that the embedded language model must beat: an interpolated modified Kneser-Ney 3-gram over words.

    python benchmarks/embedded_model/ngram.py [--data movie_reviews.zip]

Chen and Goodman (1998), "An Empirical Study of Smoothing Techniques for Language Modeling", section 3: three discounts an
order (for counts of one, two, and three or more), lower orders estimated from continuation counts, the unigrams mixed with
the uniform distribution. A sentence is one line of the corpus, between two ``<s>`` and one ``</s>``.

A word outside the vocabulary counts as ``<unk>``. It is easier to predict that some unknown word follows than which:
``perplexity`` counts the former alone, which favours the 3-gram; ``spelled`` adds the word's letters, by a 3-gram over the
characters of words seen once in training, as the language model's sum includes its sub-words. The vocabulary is every
word seen ``min_count`` times in training: with 1 nothing in training is ``<unk>``; with 2 the model learns where rare words
occur, and more words are ``<unk>``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data import Review, drop_copies, load_reviews, split_reviews

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
Gram = tuple[Hashable, ...]


def discounts(counts: Iterable[int]) -> tuple[float, float, float]:
    """Chen and Goodman's D1, D2 and D3+ (their equation 26) from the counts of counts; in [0, 1], [0, 2] and [0, 3]."""
    n = Counter(min(c, 5) for c in counts)
    y = n[1] / max(1, n[1] + 2 * n[2])
    found = [k - (k + 1) * y * n[k + 1] / max(1, n[k]) for k in (1, 2, 3)]
    d1, d2, d3 = (min(max(d, 0.0), float(k)) for k, d in zip((1, 2, 3), found, strict=True))
    return d1, d2, d3


class Order:
    """One order of the model: discounted counts of grams, and what each history leaves to the order below."""

    def __init__(self, counts: Counter[Gram]) -> None:
        self.counts = counts
        self.discount = (0.0, *discounts(counts.values()))
        self.total: Counter[Gram] = Counter()
        freed: defaultdict[Gram, float] = defaultdict(float)
        for gram, count in counts.items():
            self.total[gram[:-1]] += count
            freed[gram[:-1]] += self.discount[min(count, 3)]
        self.backoff = {history: mass / self.total[history] for history, mass in freed.items()}

    def probability(self, history: Gram, word: Hashable, lower: float) -> float:
        """P(word | history), interpolated with the order below.

        Args:
            history: the symbols before the word.
            word: the word.
            lower: its probability by the order below.
        """
        total = self.total.get(history, 0)
        if not total:
            return lower
        count = self.counts.get((*history, word), 0)
        return max(0.0, count - self.discount[min(count, 3)]) / total + self.backoff[history] * lower


class KneserNey:
    """An interpolated modified Kneser-Ney 3-gram over sequences of symbols.

    Args:
        sequences: what to learn from, without start and end symbols.
        vocabulary: every symbol that may be predicted, ``</s>`` included.
    """

    def __init__(self, sequences: Iterable[Sequence[Hashable]], vocabulary: set[Hashable]) -> None:
        self.uniform = 1.0 / len(vocabulary)
        threes: Counter[Gram] = Counter()
        for sequence in sequences:
            padded = (START, START, *sequence, END)
            threes.update(zip(padded, padded[1:], padded[2:], strict=False))
        twos = Counter(gram[1:] for gram in threes)  # in how many contexts a pair continues, not how often it occurs
        ones = Counter(gram[1:] for gram in twos)
        # A pair that opens a sentence has one possible context, <s>: its own count is the better evidence.
        for gram, count in threes.items():
            if gram[1] == START:
                twos[gram[1:]] = count
        self.orders = [Order(ones), Order(twos), Order(threes)]

    def log_probability(self, sequence: Sequence[Hashable]) -> float:
        """Natural log-probability of the sequence and its end."""
        padded = (START, START, *sequence, END)
        return sum(math.log(self.probability(padded[i - 2 : i], padded[i])) for i in range(2, len(padded)))

    def probability(self, history: Gram, word: Hashable) -> float:
        """P(word | history of two symbols).

        Args:
            history: the two symbols before the word.
            word: the word.
        """
        p = self.uniform
        for n, order in enumerate(self.orders):
            p = order.probability(history[len(history) - n :], word, p)
        return p


@dataclass(frozen=True)
class Result:
    """Held-out metrics; a word is a whitespace token or the end of a sentence."""

    perplexity: float
    spelled: float
    words: int
    unknown: int
    vocabulary: int


class WordModel:
    """The 3-gram over words, with its spelling model for words outside the vocabulary."""

    def __init__(self, reviews: list[Review], min_count: int = 2) -> None:
        lines = [s.split() for r in reviews for s in r.sentences]
        counts = Counter(word for line in lines for word in line)
        self.vocabulary = {word for word, count in counts.items() if count >= min_count}
        rare = [word for word, count in counts.items() if count == 1]
        self.words = KneserNey((self.known(line) for line in lines), {*self.vocabulary, UNKNOWN, END})
        self.letters = KneserNey(rare, {*map(chr, range(256)), END})

    def known(self, line: list[str]) -> list[str]:
        """The line with ``<unk>`` for words outside the vocabulary."""
        return [word if word in self.vocabulary else UNKNOWN for word in line]

    def known_nll(self, line: list[str]) -> float:
        """Nats of the line's words that are in the vocabulary; their histories may hold ``<unk>``."""
        padded = (START, START, *self.known(line))
        grams = zip(padded, padded[1:], padded[2:], strict=False)
        return -sum(math.log(self.words.probability((u, v), w)) for u, v, w in grams if w != UNKNOWN)

    def evaluate(self, reviews: list[Review]) -> Result:
        """Perplexity on held-out reviews."""
        nll = spelling = 0.0
        unknown = 0
        for review in reviews:
            for sentence in review.sentences:
                line = sentence.split()
                nll -= self.words.log_probability(self.known(line))
                outside = [word for word in line if word not in self.vocabulary]
                unknown += len(outside)
                spelling -= sum(self.letters.log_probability(word) for word in outside)
        n = sum(r.num_words for r in reviews)
        return Result(math.exp(nll / n), math.exp((nll + spelling) / n), n, unknown, len(self.vocabulary))


def main() -> None:
    """Fit on the training reviews; print the metrics on validation and test as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="movie_reviews.zip (default: NLTK downloads it)")
    parser.add_argument("--min-count", type=int, default=2)
    args = parser.parse_args()
    train, valid, test = split_reviews(load_reviews(args.data))
    model = WordModel(train, args.min_count)
    parts = {"valid": drop_copies(valid, train), "test": drop_copies(test, train)}
    print(json.dumps({name: asdict(model.evaluate(part)) for name, part in parts.items()}, indent=2))


if __name__ == "__main__":
    main()
