"""The figures of docs/scaling.md: memory, bytes moved and shares of time for three sizes of model on 1 to 512 GPUs.

    python benchmarks/scaling.py docs/scaling.md    # writes the tables between the page's markers; without a file, prints them

Nothing is run: it is arithmetic on the constants below, each cited or marked as assumed. Memory with all weights on every GPU
is traced on tensors without data by ``rlhf_gym.loop.memory_plan``, which takes minutes for the largest model.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GB = 1e9
GPUS = (1, 8, 64, 512)
NODE = 8
"""GPUs of a machine."""


@dataclass(frozen=True)
class Size:
    """A model's dimensions, as in the configuration that its makers have published.

    Attributes:
        name: of the model.
        layers: blocks.
        hidden: width.
        feed_forward: width inside a block's feed-forward part.
        heads: of attention.
        kv_heads: of keys and values.
        vocabulary: tokens.
        tied: input and output embeddings are one table.
    """

    name: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    @property
    def parameters(self) -> int:
        """All weights but those of norms and biases, which are less than 0.1%."""
        attention = self.hidden * self.hidden * 2 * (1 + self.kv_heads / self.heads)
        block = attention + 3 * self.hidden * self.feed_forward
        return int(self.layers * block + (1 if self.tied else 2) * self.vocabulary * self.hidden)

    @property
    def cache_per_token(self) -> int:
        """Bytes of keys and values of a token, in bfloat16."""
        return 2 * 2 * self.layers * self.kv_heads * self.hidden // self.heads

    def config(self) -> dict[str, Any]:
        """The model's configuration, as transformers reads it."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "vocab_size": self.vocabulary, "max_position_embeddings": 8192,
            "tie_word_embeddings": self.tied,
        }  # fmt: skip


SIZES = (
    Size("0.5B", 24, 896, 4864, 14, 2, 151936, True),  # Qwen2.5-0.5B's config.json
    Size("8B", 32, 4096, 14336, 32, 8, 128256, False),  # Llama-3.1-8B; Grattafiori et al. 2024, table 3
    Size("70B", 80, 8192, 28672, 64, 8, 128256, False),  # Llama-3.1-70B, likewise
)


@dataclass(frozen=True)
class Machine:
    """A GPU and its connections.

    Attributes:
        flops: bfloat16 without sparsity, a second.
        bandwidth: bytes of its memory a second.
        memory: bytes.
        inside: bytes a second that it sends within its machine.
        between: bytes a second that it sends to other machines.
        learning: share of ``flops`` that training reaches.
        reading: share of ``bandwidth`` that decoding reaches.
    """

    flops: float = 989e12  # NVIDIA, H100 SXM data sheet: 1,979 with sparsity
    bandwidth: float = 3.35e12  # likewise
    memory: float = 80e9  # likewise
    inside: float = 450e9  # likewise: NVLink, 900 GB/s both ways
    between: float = 50e9  # NVIDIA DGX H100: 400 Gb/s a GPU
    learning: float = (
        0.40  # Grattafiori et al. 2024, table 4: 38% to 43% for 405B on 8,192 to 16,384 H100; smaller models: assumed
    )
    reading: float = 0.60  # assumed, of an engine with paged attention and CUDA graphs


@dataclass(frozen=True)
class Work:
    """An iteration, GRPO's with one epoch: assumed, of the size that reasoning runs have.

    Attributes:
        episodes: responses.
        prompt: tokens of a prompt.
        response: tokens of a response.
        steps: steps of the optimizer.
    """

    episodes: int = 1024
    prompt: int = 512
    response: int = 1024
    steps: int = 4

    @property
    def tokens(self) -> int:
        """Tokens of all prompts and responses."""
        return self.episodes * (self.prompt + self.response)


@dataclass(frozen=True)
class Seconds:
    """Seconds of an iteration by phase, and the bytes that a GPU sends."""

    generation: float
    reference: float
    learning: float
    transfer: float
    sent: float

    @property
    def total(self) -> float:
        """Of all phases, which follow one another."""
        return self.generation + self.reference + self.learning + self.transfer


def tensor_parallel(size: Size, machine: Machine) -> int:
    """GPUs that one copy of the generating model is cut over: the least power of two at which weights take half the memory.

    Args:
        size: the model.
        machine: the GPUs.
    """
    gpus = 1
    while 2 * size.parameters / gpus > machine.memory / 2:
        gpus *= 2
    return gpus


def decode_seconds(size: Size, machine: Machine, work: Work, gpus: int) -> float:
    """Seconds to generate an iteration's responses: a step reads weights and cache, or computes, whichever takes longer.

    Args:
        size: the model.
        machine: the GPUs.
        work: the iteration.
        gpus: their number.
    """
    cut = min(tensor_parallel(size, machine), gpus)
    copies = gpus // cut
    waiting = -(-work.episodes // copies)  # responses of one copy
    length = work.prompt + work.response / 2  # of a response in the middle of its generation
    room = 0.9 * machine.memory * cut - 2 * size.parameters
    at_once = max(1, min(waiting, int(room // (size.cache_per_token * (work.prompt + work.response)))))
    rounds = waiting / at_once
    read = 2 * size.parameters + at_once * length * size.cache_per_token
    step = max(
        read / (cut * machine.bandwidth * machine.reading),
        2 * size.parameters * at_once / (cut * machine.flops * machine.learning),
    )
    return rounds * work.response * step + 2 * size.parameters * waiting * work.prompt / (
        cut * machine.flops * machine.learning
    )


def adapter_weights(size: Size, rank: int = 16) -> int:
    """Weights of an adapter of a rank on all linear layers of the blocks."""
    kv = size.hidden * size.kv_heads // size.heads
    sides = [(size.hidden, size.hidden)] * 2 + [(size.hidden, kv)] * 2 + [(size.hidden, size.feed_forward)] * 3
    return size.layers * rank * sum(one + other for one, other in sides)


def iteration(
    size: Size, machine: Machine, work: Work, gpus: int, *, sharded: bool = False, adapter: bool = False
) -> Seconds:
    """The seconds of an iteration.

    Args:
        size: the model.
        machine: the GPUs.
        work: the iteration.
        gpus: their number.
        sharded: weights, gradients and moments are shared out (ZeRO stage 3), in place of a copy on every GPU.
        adapter: a LoRA adapter learns, on a base that every GPU holds.
    """
    pace = gpus * machine.flops * machine.learning
    link = machine.inside if gpus <= NODE else machine.between
    part = (gpus - 1) / gpus
    if sharded:
        # A step gathers bfloat16 weights for both passes and adds up float32 gradients into their shards, at the least: with
        # several micro-batches it gathers again. The engine gets bfloat16 weights once.
        sent = part * (work.steps * (2 * 2 + 4) + 2) * size.parameters
    else:  # a ring sends every float32 gradient about twice (Patarasuk and Yuan 2009)
        sent = part * work.steps * 2 * 4 * (adapter_weights(size) if adapter else size.parameters)
    # Checkpointed activations are computed twice: 8 operations a weight and token, 6 without gradients of the weights.
    operations = 6 if adapter else 8
    return Seconds(
        decode_seconds(size, machine, work, gpus),
        2 * size.parameters * work.tokens / pace,
        operations * size.parameters * work.tokens / pace,
        sent / link if gpus > 1 else 0.0,
        sent if gpus > 1 else 0.0,
    )


def sharded_bytes(size: Size, gpus: int) -> float:
    """Bytes of weights, gradients, moments and reference on a GPU: 16 a weight that learns, 2 of the reference, shared out.

    Rajbhandari et al. 2020, section 3.1, with float32 gradients: 4 + 4 + 8. Activations and cache are not in it.

    Args:
        size: the model.
        gpus: their number.
    """
    return (16 + 2) * size.parameters / gpus


def planned_bytes(size: Size, work: Work, gpus: int, lora: Mapping[str, Any] | None) -> int:
    """Bytes at the peak with all weights on every GPU, as `rlhf-gym plan` traces it.

    Args:
        size: the model.
        work: the iteration.
        gpus: their number.
        lora: an adapter's settings; None trains all weights.
    """
    from rlhf_gym.loop.config_file import build
    from rlhf_gym.loop.memory_plan import plan_memory

    slots = min(64, max(8, work.episodes // gpus))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(size.config()), encoding="utf-8")
        # Weights that learn are float32 at any precision, and a run's reference is of their dtype; a base stays bfloat16.
        model: dict[str, Any] = {"name": folder, "device": "cpu", "dtype": "bfloat16" if lora else "float32"}
        agent = {
            "name": "grpo", "n_envs": slots, "n_episodes": slots, "batch_size": slots, "precision": "bf16",
            "gradient_checkpointing": True, "tokens_per_batch": 4096,
        }  # fmt: skip
        config = build(
            {
                "model": model | ({"lora": dict(lora)} if lora else {}),
                "agent": agent,
                "reward_model": {"enabled": False},
            }
        )
        plan = plan_memory(config, prompt_tokens=work.prompt, response_tokens=work.response)
    return plan.peak - int(1.08 * plan.libraries)


def memory_table(work: Work, machine: Machine) -> list[str]:
    """Memory of a GPU: as built (all weights on each), and shared out (on paper)."""
    rows = [
        "| model | all weights, GB on every GPU | LoRA of rank 16, GB on every GPU "
        "| ZeRO stage 3 over 8, 64, 512, GB (not built) |",
        "| --- | --- | --- | --- |",
    ]
    for size in SIZES:
        cut = ", ".join(f"{sharded_bytes(size, gpus) / GB:.3g}" for gpus in GPUS[1:])
        marks = []
        for least, lora in ((18 * size.parameters, None), (2 * size.parameters, {"rank": 16})):
            if least > machine.memory:  # nothing to trace
                marks.append(f"above {least / GB:.0f}: does not fit")
            else:
                marks.append(f"{planned_bytes(size, work, 16, lora) / GB:.0f}")
        rows.append(f"| {size.name} | {marks[0]} | {marks[1]} | {cut} |")
    return rows


def time_table(work: Work, machine: Machine) -> list[str]:
    """Shares of time, for every size and number of GPUs."""
    rows = [
        "| model | GPUs | design | seconds an iteration | generation | reference | learning | transfer | GB that a GPU sends | "
        "efficiency against 8 GPUs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size in SIZES:
        for design in DESIGNS:
            if _wanted(size, machine, design):
                rows += _time_rows(size, machine, work, design)
    return rows


DESIGNS: Mapping[str, dict[str, bool]] = {
    "as built": {}, "as built, LoRA": {"adapter": True}, "ZeRO stage 3 (not built)": {"sharded": True},
}  # fmt: skip


def _wanted(size: Size, machine: Machine, design: str) -> bool:
    """True for a design that a model of this size would be trained by."""
    whole = (
        18 * size.parameters < 0.6 * machine.memory
    )  # weights, gradients, moments, reference; the rest is activations
    if design == "as built":
        return whole
    return not whole and (design != "as built, LoRA" or 2 * size.parameters < 0.6 * machine.memory)


def _time_rows(size: Size, machine: Machine, work: Work, design: str) -> list[str]:
    """The rows of a model in a design."""
    rows, eight = [], 0.0
    for gpus in GPUS:
        if DESIGNS[design].get("sharded") and sharded_bytes(size, gpus) > 0.6 * machine.memory:
            rows.append(f"| {size.name} | {gpus} | {design} | does not fit | | | | | | |")
            continue
        found = iteration(size, machine, work, gpus, **DESIGNS[design])
        eight = found.total * gpus if gpus == NODE else eight
        phases = (found.generation, found.reference, found.learning, found.transfer)
        shares = " | ".join(f"{seconds / found.total:.0%}" for seconds in phases)
        against = f"{eight / (found.total * gpus):.0%}" if eight else ""
        rows.append(
            f"| {size.name} | {gpus} | {design} | {found.total:.3g} | {shares} | {found.sent / GB:.3g} | {against} |"
        )
    return rows


def main() -> None:
    """Write or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", nargs="?", type=Path, help="the page to write them into")
    parser.add_argument("--time-only", action="store_true", help="leave the table of memory, which is traced, as it is")
    options = parser.parse_args()
    page, work, machine = options.page, Work(), Machine()
    tables = {"time": time_table(work, machine)}
    if not options.time_only:
        tables["memory"] = memory_table(work, machine)
    if page is None:
        print("\n\n".join("\n".join(table) for table in tables.values()))
        return
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda found, table=table: found[1] + "\n".join(table) + "\n" + found[2], text)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
