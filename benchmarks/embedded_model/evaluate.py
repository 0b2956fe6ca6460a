"""The model card's metrics: held-out perplexity next to the 3-gram's, samples, and the scorer's accuracy and calibration.

    python benchmarks/embedded_model/evaluate.py [--model rlhf_gym/embedded/lm] [--data movie_reviews.zip]

Prints JSON. Held-out reviews that repeat a training review are left out (see ``data.drop_copies``). A word is a whitespace
token of the corpus or the end of one of its sentences, for both models. The language model's sum includes the ends of passages,
but not sentence ends within a passage, which its text does not mark except by a full stop. So a second comparison leaves all
ends out, and all words that the 3-gram does not know: there both models predict exactly the same words, and the language model
still has to spell them.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from data import Review, drop_copies, load_reviews, split_reviews
from ngram import WordModel
from numpy.typing import NDArray
from train_lm import Passages, token_nlls, total_nll
from train_scorer import snippets
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_gym.embedded import EMBEDDED_LM
from rlhf_gym.rewards.builtin.sentiment_scorer import SentimentScorer

PROMPT_PREFIXES = (
    "the film opens with",
    "the story follows a young woman who",
    "i saw this one with a friend, and",
    "in the first scene, the director",
    "this is a wonderful film, with",
    "what a waste of a talented cast:",
)


def word_nlls(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, review: Review, ids: list[int]
) -> list[float]:
    """Nats of each word of a review, ends of passages left out; a sub-word that spans two words counts with the first.

    Args:
        model: the language model.
        tokenizer: its tokenizer.
        review: the review.
        ids: the review's ids, BOS and passage ends included.

    Raises:
        ValueError: the ids' letters are not those of the review.
    """
    spans = [len(word) for sentence in review.sentences for word in sentence.split()]
    ends = np.cumsum(spans)
    out = [0.0] * len(spans)
    position = 0
    for token, nll in zip(ids[1:], token_nlls(model, ids).tolist(), strict=True):
        if token != tokenizer.eos_token_id:
            out[int(np.searchsorted(ends, position, side="right"))] += nll
            position += len(tokenizer.decode([token]).replace(" ", ""))
    if position != ends[-1]:
        raise ValueError(f"review {review.name}: {position} letters in tokens, {ends[-1]} in words")
    return out


def compare(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, baselines: dict[str, WordModel], reviews: list[Review]
) -> dict[str, float]:
    """Perplexities per word of the language model and of each 3-gram on the same reviews.

    Args:
        model: the language model.
        tokenizer: its tokenizer.
        baselines: 3-grams by name.
        reviews: held-out reviews.
    """
    passages = Passages(reviews, tokenizer)
    documents = passages.documents(0)
    nll, tokens = total_nll(model, documents)
    words = sum(r.num_words for r in reviews)
    # Every sentence by itself: no more context than a sentence-by-sentence 3-gram has.
    alone, _ = total_nll(model, [[passages.eos, *sentence, passages.eos] for sentence in passages.opening])
    metrics = {
        "reviews": len(reviews),
        "words": words,
        "tokens": tokens,
        "lm_loss_per_token": nll / tokens,
        "lm_perplexity": math.exp(nll / words),
        "lm_perplexity_sentence_alone": math.exp(alone / words),
    }
    ours = [word_nlls(model, tokenizer, review, ids) for review, ids in zip(reviews, documents, strict=True)]
    for name, baseline in baselines.items():
        result = baseline.evaluate(reviews)
        metrics[f"{name}_perplexity"] = result.perplexity
        metrics[f"{name}_perplexity_spelled"] = result.spelled
        metrics[f"{name}_unknown_share"] = result.unknown / words
        mine = theirs = 0.0
        known = 0
        for review, nlls in zip(reviews, ours, strict=True):
            original = [word for sentence in review.sentences for word in sentence.split()]
            theirs += sum(baseline.known_nll(sentence.split()) for sentence in review.sentences)
            mine += sum(n for word, n in zip(original, nlls, strict=True) if word in baseline.vocabulary)
            known += sum(word in baseline.vocabulary for word in original)
        metrics[f"{name}_perplexity_known_words"] = math.exp(theirs / known)
        metrics[f"lm_perplexity_{name}_known_words"] = math.exp(mine / known)
    return metrics


def samples(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> list[str]:
    """Continue each prompt prefix once, at temperature 0.8 and top-p 0.95, unselected.

    Args:
        model: the language model.
        tokenizer: its tokenizer.
        seed: seed of the noise.
    """
    torch.manual_seed(seed)
    texts = []
    for prefix in PROMPT_PREFIXES:
        prompt = tokenizer(prefix, return_tensors="pt")
        ids = model.generate(**prompt, do_sample=True, temperature=0.8, top_p=0.95, top_k=0, max_new_tokens=60)  # type: ignore[operator]
        texts.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    return texts


def expected_calibration_error(scores: NDArray[np.float64], labels: NDArray[np.bool_], bins: int = 10) -> float:
    """Mean distance between stated and observed share of praise, over equally filled bins of the stated one; in [0, 1].

    Args:
        scores: ``[n]``, log-odds of praise.
        labels: ``[n]``, True for praise.
        bins: number of bins.
    """
    stated = 1 / (1 + np.exp(-scores))
    groups = np.array_split(np.argsort(stated, kind="stable"), bins)
    return float(sum(len(g) * abs(stated[g].mean() - labels[g].mean()) for g in groups if len(g)) / len(scores))


def scorer_metrics(reviews: list[Review]) -> dict[str, float | list[float]]:
    """Accuracy on whole reviews and on snippets of one to three sentences, and calibration on snippets."""
    scorer = SentimentScorer.embedded()
    whole = scorer.score([" ".join(r.text()) for r in reviews])
    texts, positive = snippets(reviews, np.random.default_rng(1))
    short, labels = scorer.score(texts), np.array(positive)
    return {
        "documents": len(reviews),
        "document_accuracy": float(np.mean((whole > 0) == np.array([r.positive for r in reviews]))),
        "snippets": len(texts),
        "snippet_accuracy": float(np.mean((short > 0) == labels)),
        "snippet_accuracy_where_sure": float(np.mean((short > 0)[np.abs(short) > 1] == labels[np.abs(short) > 1])),
        "snippet_share_sure": float(np.mean(np.abs(short) > 1)),
        "snippet_calibration_error": expected_calibration_error(short, labels),
        "snippet_score_quantiles_1_10_50_90_99": np.quantile(short, [0.01, 0.1, 0.5, 0.9, 0.99]).round(2).tolist(),
    }


def main() -> None:
    """Compute and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="movie_reviews.zip (default: NLTK downloads it)")
    parser.add_argument("--model", type=Path, default=EMBEDDED_LM)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, valid, test = split_reviews(load_reviews(args.data))
    valid, test = drop_copies(valid, train), drop_copies(test, train)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    baselines = {"3gram": WordModel(train, min_count=1), "3gram_unk": WordModel(train, min_count=2)}
    report = {
        "valid": compare(model, tokenizer, baselines, valid),
        "test": compare(model, tokenizer, baselines, test),
        "scorer": scorer_metrics(test),
        "samples": samples(model, tokenizer),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
