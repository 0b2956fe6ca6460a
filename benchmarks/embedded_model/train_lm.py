"""Trains the embedded language model: a byte-level BPE tokenizer and a small GPT-2 on film reviews, on a CPU.

    python benchmarks/embedded_model/train_lm.py --work build/lm --out rlhf_gym/embedded/lm [--data movie_reviews.zip]

Seeded and resumable: step ``i`` draws its batch from ``SeedSequence((seed, i))``, and the checkpoint in ``--work`` (weights,
optimisers, step) is replaced atomically, so a run that was killed goes on where it was with the same command.

What it learns: passages of one to several sentences, each ended by ``<|endoftext|>``, in the order of the review, starting at
any sentence and in half of the windows after a BOS (the same token). So the model ends a passage by itself after some 40
tokens, and writes equally well with and without a BOS.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from data import Review, load_reviews, split_reviews
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

EOS, PAD = "<|endoftext|>", "<|pad|>"
END_PASSAGE = 0.5  # chance that a passage ends after a sentence: two sentences on average


def train_tokenizer(train: list[Review], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the training reviews; ``<|endoftext|>`` is id 0, ``<|pad|>`` id 1.

    Args:
        train: training reviews.
        vocab_size: number of tokens.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS, PAD], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator((" ".join(r.text()) for r in train), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, bos_token=EOS, pad_token=PAD)


class Passages:
    """Reviews as token ids, each sentence in two forms: opening a passage, and continuing one (with a leading space)."""

    def __init__(self, reviews: list[Review], tokenizer: PreTrainedTokenizerFast) -> None:
        self.eos = int(tokenizer.eos_token_id)
        self.opening: list[list[int]] = []
        self.continuing: list[list[int]] = []
        self.first_of: list[int] = []
        for review in reviews:
            self.first_of.append(len(self.opening))
            for sentence in review.text():
                self.opening.append(tokenizer.encode(sentence, add_special_tokens=False))
                self.continuing.append(tokenizer.encode(" " + sentence, add_special_tokens=False))

    def window(self, rng: np.random.Generator, length: int) -> list[int]:
        """Ids from a random sentence on, passage ends drawn anew.

        Args:
            rng: source of the draws.
            length: number of ids.
        """
        i = int(rng.integers(len(self.opening)))
        ids = [self.eos] if rng.random() < 0.5 else []
        opens = True
        while len(ids) < length:
            ids += self.opening[i] if opens else self.continuing[i]
            i = (i + 1) % len(self.opening)
            opens = bool(rng.random() < END_PASSAGE)
            if opens:
                ids.append(self.eos)
        return ids[:length]

    def documents(self, seed: int) -> list[list[int]]:
        """Every review as one sequence of ids that begins with a BOS, passage ends drawn once from ``seed``."""
        rng = np.random.default_rng(seed)
        ends = [*self.first_of[1:], len(self.opening)]
        out = []
        for first, end in zip(self.first_of, ends, strict=True):
            ids = [self.eos]
            opens = True
            for i in range(first, end):
                ids += self.opening[i] if opens else self.continuing[i]
                opens = bool(rng.random() < END_PASSAGE) or i == end - 1
                if opens:
                    ids.append(self.eos)
            out.append(ids)
        return out


@torch.no_grad()
def token_nlls(model: GPT2LMHeadModel, ids: list[int]) -> torch.Tensor:
    """``-log p`` in nats of every id but the first, float32 ``[len(ids) - 1]``.

    Windows of the model's context advance by half of it, so that every token but a review's first is predicted from at
    least half a context of its own review.

    Args:
        model: the language model.
        ids: a review's ids, at least 2.
    """
    model.eval()
    context = model.config.n_positions
    parts: list[torch.Tensor] = []
    scored = 1
    for start in range(0, max(1, len(ids) - 1), context // 2):
        chunk = torch.tensor(ids[start : start + context])[None]
        logits = model(chunk).logits[0, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits, chunk[0, 1:], reduction="none")
        parts.append(nll[scored - start - 1 :])
        scored = start + chunk.shape[1]
        if scored >= len(ids):
            break
    return torch.cat(parts)


def total_nll(model: GPT2LMHeadModel, documents: list[list[int]]) -> tuple[float, int]:
    """Sum of -log p over all tokens but each document's BOS, in nats, and their number.

    Args:
        model: the language model.
        documents: ids of each document.
    """
    nlls = [token_nlls(model, ids) for ids in documents]
    return sum(float(n.sum()) for n in nlls), sum(map(len, nlls))


def perplexity_per_word(model: GPT2LMHeadModel, reviews: list[Review], passages: Passages, seed: int = 0) -> float:
    """``exp(NLL / words)``: words and ends of sentences of the corpus's own tokenisation, whatever the BPE made of them.

    Args:
        model: the language model.
        reviews: the reviews.
        passages: the same reviews as ids.
        seed: seed of the passage ends.
    """
    nll, _ = total_nll(model, passages.documents(seed))
    return math.exp(nll / sum(r.num_words for r in reviews))


def make_optimisers(model: GPT2LMHeadModel, lr: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for embeddings, norms and biases.

    Args:
        model: the language model.
        lr: peak learning rate of both.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    ids = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in ids]
    muon = torch.optim.Muon(matrices, lr=lr, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    return [muon, adamw]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 100 steps, then cosine to 2% of the peak.

    Args:
        step: steps done.
        steps: steps in all.
        peak: the peak.
    """
    warm = min(1.0, (step + 1) / min(100, max(1, steps // 10)))
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def export(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write weights in float16 with dropout zero, so that it need not be turned off.

    The configuration says float32, so that a plain ``from_pretrained`` computes in float32, whatever the file stores.

    Args:
        model: the trained model.
        tokenizer: its tokenizer.
        out: the folder.
    """
    shipped = GPT2LMHeadModel(GPT2Config(**{**model.config.to_dict(), **dropout(0.0), "use_cache": True}))
    shipped.load_state_dict(model.state_dict())
    shipped.half().save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(out)
    for file in out.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone


def dropout(p: float) -> dict[str, float]:
    """GPT-2's three dropout settings; none on attention, since PyTorch has no fused attention with dropout on CPUs."""
    return {"embd_pdrop": p, "resid_pdrop": p, "attn_pdrop": 0.0}


def main() -> None:
    """Train, resume or export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="movie_reviews.zip (default: NLTK downloads it)")
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoint and the metrics")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained model and tokenizer")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=16, help="windows a step")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast to bfloat16")
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--warm-start", type=Path, help="another run's checkpoint.pt, to begin with its weights")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    train, valid, _ = split_reviews(load_reviews(args.data))
    tokenizer = train_tokenizer(train, args.vocab)
    passages, held_out = Passages(train, tokenizer), Passages(valid, tokenizer)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=args.context, n_embd=args.width, n_layer=args.layers, n_head=args.heads,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        activation_function="gelu_pytorch_tanh", use_cache=False, **dropout(args.dropout),
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimisers = make_optimisers(model, args.lr)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {sum(map(len, passages.opening)):,} tokens")

    checkpoint = args.work / "checkpoint.pt"
    first = 0
    if args.warm_start and not checkpoint.exists():
        model.load_state_dict(torch.load(args.warm_start, weights_only=True)["model"])
        print(f"beginning with the weights of {args.warm_start}")
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        first = state["step"]
        print(f"going on from step {first}")

    start = time.time()
    for step in range(first, args.steps):
        rng = np.random.default_rng(np.random.SeedSequence((args.seed, step)))
        torch.manual_seed(args.seed * 1_000_003 + step)  # dropout's noise too follows the step, not the history
        ids = torch.tensor([passages.window(rng, args.context + 1) for _ in range(args.batch)])
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.lr)
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        model.zero_grad(set_to_none=True)
        done = step + 1
        if done % args.save_every == 0 or done == args.steps:
            state = {"model": model.state_dict(), "optimisers": [o.state_dict() for o in optimisers], "step": done}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            rate = (done - first) * args.batch * args.context / (time.time() - start)
            row = {"step": done, "loss": round(loss.item(), 4), "tokens_per_second": round(rate)}
            if done % (5 * args.save_every) == 0 or done == args.steps:
                row["valid_perplexity_per_word"] = round(perplexity_per_word(model, valid, held_out), 2)
                export(model, tokenizer, args.out)
            with (args.work / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
