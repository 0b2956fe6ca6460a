"""The corpus of the embedded model: 2,000 film reviews, split by document, as readable lower-case text.

Source: the Sentiment Polarity Dataset 2.0 (Pang and Lee, ACL 2004), one sentence a line, tokens separated by spaces. Get it
with ``nltk.download("movie_reviews")`` or name a copy of ``movie_reviews.zip``.
"""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VALIDATION_PER_LABEL = 50
TEST_PER_LABEL = 50
NO_SPACE_BEFORE = set(".,!?;:)]}%") | {"...", "n't", "'s"}
NO_SPACE_AFTER = set("([{$#")


@dataclass(frozen=True)
class Review:
    """One review: its file's name, whether it praises (True) or pans (False), and its sentences as given (tokenised)."""

    name: str
    positive: bool
    sentences: tuple[str, ...]

    @property
    def num_words(self) -> int:
        """Whitespace tokens, punctuation included, plus one end-of-sentence event a sentence."""
        return sum(len(s.split()) + 1 for s in self.sentences)

    def text(self) -> list[str]:
        """The sentences as a person would type them."""
        return [detokenise(s) for s in self.sentences]


def detokenise(sentence: str) -> str:
    """Put punctuation back where a writer puts it: ``"it's fine , really ."`` becomes ``"it's fine, really."``."""
    out = ""
    glue = True  # no space before the next token
    quote_open = False
    for token in sentence.split():
        if token == '"':
            if quote_open:
                out += '"'
                glue = False
            else:
                out += '"' if glue or not out else ' "'
                glue = True
            quote_open = not quote_open
            continue
        if token in {"/", "'"} and out:
            out += token
            glue = token == "/"
            continue
        if token in NO_SPACE_BEFORE:
            out += token
            glue = False
            continue
        out += token if glue or not out else " " + token
        glue = token in NO_SPACE_AFTER
    return re.sub(r"\s+", " ", out).strip()


def load_reviews(path: Path | None = None) -> list[Review]:
    """All reviews, sorted by name.

    Args:
        path: ``movie_reviews.zip``; None downloads it with NLTK into NLTK's own data folder.

    Raises:
        SystemExit: the file holds no reviews.
    """
    if path is None:
        import nltk

        nltk.download("movie_reviews")
        data = nltk.data.find("corpora/movie_reviews.zip")
        path = Path(str(getattr(data, "path", data)))
    reviews = []
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        for name in sorted(archive.namelist()):
            match = re.fullmatch(r"movie_reviews/(pos|neg)/(.+)\.txt", name)
            if match:
                lines = archive.read(name).decode("latin-1").splitlines()
                sentences = tuple(" ".join(line.split()) for line in lines if line.strip())
                reviews.append(Review(match[2], match[1] == "pos", sentences))
    if not reviews:
        raise SystemExit(f"{path} holds no movie_reviews/pos|neg/*.txt; expected NLTK's movie_reviews.zip")
    return reviews


def split_reviews(reviews: list[Review], seed: int = 0) -> tuple[list[Review], list[Review], list[Review]]:
    """Train, validation and test by document, stratified by label: 5% each for the latter two of the full corpus.

    Args:
        reviews: all of them.
        seed: seed of the split.
    """
    rng = np.random.default_rng(seed)
    train: list[Review] = []
    valid: list[Review] = []
    test: list[Review] = []
    for positive in (False, True):
        group = [r for r in reviews if r.positive == positive]
        order = rng.permutation(len(group))
        n_valid, n_test = (min(n, len(group) // 4) for n in (VALIDATION_PER_LABEL, TEST_PER_LABEL))
        valid += [group[i] for i in order[:n_valid]]
        test += [group[i] for i in order[n_valid : n_valid + n_test]]
        train += [group[i] for i in order[n_valid + n_test :]]
    return train, valid, test


def drop_copies(reviews: list[Review], train: list[Review], share: float = 0.25) -> list[Review]:
    """Held-out reviews without those that repeat training reviews.

    The corpus holds some reviews twice, slightly edited. One that shares more than ``share`` of its sentences of eight
    words or more with the training reviews would reward a model for memory: a 3-gram's above all.

    Args:
        reviews: held-out reviews.
        train: training reviews.
        share: share of a review's long sentences, in [0, 1], that training reviews may hold too.
    """
    seen = {s for r in train for s in r.sentences if len(s.split()) >= 8}
    kept = []
    for review in reviews:
        long = [s for s in review.sentences if len(s.split()) >= 8]
        if sum(s in seen for s in long) <= share * len(long):
            kept.append(review)
    return kept
