"""A pass over groups of responses, forward and backward: prompts run once for all their responses, against whole rows.

    python benchmarks/speed/shared_prompts.py
    python benchmarks/speed/shared_prompts.py --model FOLDER --precision bf16 --prompt 512 --response 64 --group 8

Both ways take turns, in CPU time; medians. ``tokens`` is the share of padded tokens that is left, ``pays`` what
:func:`~rlhf_gym.lm.sequences.pack_sequences` would do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import torch

from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import token_log_probs
from rlhf_gym.lm.precision import product_dtype
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.lm.sequences import SequenceBatch, pack_sequences, response_positions, share_prompts


def learn(model: LanguageModel, batch: SequenceBatch) -> float:
    """CPU seconds of log-probabilities and their gradient."""
    model.model.zero_grad()
    begin = time.process_time()
    logs, _ = token_log_probs(
        model, model.response_states(batch), batch.responses[batch.response_mask], response_positions(batch), Sampling(),
        Limits(model.tokenizer.eos_id, (), 0, batch.responses.shape[1]),
    )  # fmt: skip
    logs.sum().backward()  # type: ignore[no-untyped-call]
    return time.process_time() - begin


def row(model: LanguageModel, prompt: int, response: int, group: int, groups: int, turns: int) -> str:
    """A line of the table: ``groups`` prompts with ``group`` responses each, all of the same lengths."""
    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        drawn: list[int] = torch.randint(2, model.vocab_size, (n,), generator=generator).tolist()
        return drawn

    prompts: Sequence[list[int]] = [text for text in [ids(prompt) for _ in range(groups)] for _ in range(group)]
    responses = [ids(response) for _ in prompts]
    found = pack_sequences(prompts, responses, model.tokenizer.pad_id, device=model.device)
    once = replace(found, shared=share_prompts(prompts, model.tokenizer.pad_id, model.device))
    whole = replace(found, shared=None)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(turns + 1):
        for shared, batch in ((False, whole), (True, once)):
            taken = learn(model, batch)
            if turn:  # the first warms up
                seconds[shared].append(taken)
    rows = len(prompts)
    left = (groups * prompt + rows * (response - 1)) / (rows * (prompt + response))
    before, after = median(seconds[False]), median(seconds[True])
    pays = "yes" if found.shared is not None else "no"
    times = (f"{1000 * before:.0f}", f"{1000 * after:.0f}", f"{before / after:.2f}")
    return f"| {' | '.join((str(prompt), str(response), f'{groups} x {group}', f'{left:.2f}', pays, *times))} |"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--precision", choices=["float32", "bf16", "auto"], default="float32")
    parser.add_argument("--prompt", type=int, nargs="+", default=[8, 16, 64, 128], help="tokens")
    parser.add_argument("--response", type=int, nargs="+", default=[48], help="tokens")
    parser.add_argument("--group", type=int, nargs="+", default=[2, 8], help="responses to a prompt")
    parser.add_argument("--rows", type=int, default=16, help="of a minibatch")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = LanguageModel.load(options.model)
    dtype = product_dtype(options.precision, model.device)
    model.product_dtype = None if dtype == torch.float32 else dtype
    print(
        "| prompt | response | prompts x responses | tokens | pays | whole rows, CPU ms | prompts once | times as fast |"
    )
    print("| ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |")
    for prompt in options.prompt:
        for response in options.response:
            for group in options.group:
                groups = max(1, options.rows // group)
                print(row(model, prompt, response, group, groups, options.turns), flush=True)


if __name__ == "__main__":
    main()
