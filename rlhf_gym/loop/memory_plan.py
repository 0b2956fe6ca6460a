"""The memory that training would take, phase by phase, before a weight is loaded.

The phases of an iteration are run on tensors without data (:mod:`rlhf_gym.lm.traced_memory`): what is alive at once is counted.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_gym.agents import ES, ILQL
from rlhf_gym.agents.common.action_value_heads import conservative_loss, q_loss, token_q
from rlhf_gym.agents.common.optimizer import BLOCK_IN_8_BITS, SMALLEST_IN_8_BITS
from rlhf_gym.agents.common.ranks import Ranks
from rlhf_gym.agents.common.value_head import ValueHead
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.action_values import ActionValues
from rlhf_gym.lm.cache import SPARE
from rlhf_gym.lm.language_model import DTYPES, LanguageModel
from rlhf_gym.lm.loading import find, is_encoder_decoder, load_options, pick_device
from rlhf_gym.lm.log_probs import token_log_probs
from rlhf_gym.lm.lora import Lora
from rlhf_gym.lm.networks import cache_argument, checkpoint_layers
from rlhf_gym.lm.precision import product_dtype, use_fast_float32
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.lm.traced_memory import LiveBytes, traced_memory
from rlhf_gym.loop.agent_catalogue import find_agent
from rlhf_gym.loop.check_processes import check_processes
from rlhf_gym.loop.config import Config
from rlhf_gym.loop.config_file import build, merge, parse_override, to_settings
from rlhf_gym.loop.planned_four_bits import number_of_weights, quantize
from rlhf_gym.loop.planned_models import NoTokens, Outline, adapt, share
from rlhf_gym.loop.planned_parts import Parts, first_part

LOGIT_COPIES = 4
"""Tables ``[responses, V]`` in float32 while a token is drawn: logits, log-probabilities, probabilities, masked logits."""

RESERVE = 0.08
"""Share for kernels' scratch memory and an allocator's reserve, which are not traced: of the size that measurements show."""


@dataclass(frozen=True)
class MemoryPlan:
    """The memory that a run's training takes at its peaks, in each of its processes.

    Attributes:
        parameters: of the language model.
        trainable: those that learn, a value network's included.
        libraries: bytes that Python and its libraries take on the processor; 0 for a GPU.
        held: bytes that stay through all phases, by what holds them; of weights in parts, while responses are generated.
        phases: most bytes alive in each phase, ``held`` included, ``libraries`` not.
        resuming: likewise while a checkpoint is loaded whose moments come whole, to be kept in parts; 0 without parts.
    """

    parameters: int
    trainable: int
    libraries: int
    held: Mapping[str, int]
    phases: Mapping[str, int]
    resuming: int = 0

    @property
    def peak(self) -> int:
        """The most bytes at once, the reserve included."""
        return self._reserved(max(self.phases.values()))

    @property
    def peak_resumed(self) -> int:
        """Likewise of a run that goes on from a checkpoint."""
        return max(self.peak, self._reserved(self.resuming))

    def _reserved(self, size: int) -> int:
        return int((1 + RESERVE) * (self.libraries + size))


def plan_memory(config: Config, *, prompt_tokens: int, response_tokens: int, ranks: Ranks | None = None) -> MemoryPlan:
    """Trace one iteration of a run's agent, in the process that takes most.

    Args:
        config: the run's configuration; of the model nothing but its own configuration is read.
        prompt_tokens: tokens of each prompt.
        response_tokens: tokens of each response.
        ranks: the processes that are to learn together, ``Ranks(0, n)``; with ``sharded=True`` each keeps a part of the
            weights. None for a single one.

    Raises:
        ModelError: there is no such model.
        ConfigError: it is an encoder-decoder model, or cannot take prompts and responses of that length; or the run would
            refuse the processes.
    """
    ranks = ranks or Ranks()
    check_processes(ranks, config)
    network_config = _network_config(config, config.model.name, config.model.revision)
    teacher = None if config.agent.teacher is None else _network_config(config, config.agent.teacher, None)
    libraries = _resident_bytes() if pick_device(config.model.device).type == "cpu" else 0
    use_fast_float32()  # the first model of a process tries a product, which needs data
    with traced_memory() as live:
        return _Training(config, live, network_config, prompt_tokens, response_tokens, teacher, ranks).plan(libraries)


def _network_config(config: Config, name: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    source = find(name, revision=revision)
    options = load_options(source, revision, config.model.trust_remote_code)
    if is_encoder_decoder(source, options):
        raise ConfigError(f"{name!r} is an encoder-decoder model; a plan can be made for causal ones only")
    return AutoConfig.from_pretrained(source.location, **options)


class _Training:
    """An iteration of a run's agent on tensors without data."""

    def __init__(
        self,
        config: Config,
        live: LiveBytes,
        network_config: Any,
        prompt_tokens: int,
        response_tokens: int,
        teacher: Any,
        ranks: Ranks,
    ) -> None:
        self.config, self.network_config, self.live, self.ranks = config, network_config, live, ranks
        self.settings = config.agent.settings
        self.prompt, self.response = prompt_tokens, response_tokens
        self.held: dict[str, int] = {}
        self.seen = 0
        base = self.model(learns=True)
        base.check_fits(prompt_tokens, response_tokens)
        self.parameters = number_of_weights(base.model)
        self.hold("policy")
        lora = Lora.of(config.model.lora) if config.model.lora else None
        self.policy = base
        if lora is not None:
            adapt(base, lora)
        self.hold("adapter")
        self.reference: LanguageModel | None = None
        agent = find_agent(config.agent.name)
        if agent.Settings.needs_reference(self.settings):
            shared = lora is not None and teacher is None
            self.reference = base if shared else self.model(teacher)
        self.hold("reference")
        self.value: LanguageModel | None = None
        if self.settings.get("value_network") == "separate":
            self.value = self.model(learns=True)
            if lora is not None:
                adapt(self.value, lora)
                share(self.value.model, base.model)
        self.hold("value network")
        self.heads: nn.ModuleList | None = None
        self.perturbs = issubclass(agent, ES)  # no backward pass: copies of the weights are compared
        if issubclass(agent, ILQL):  # as ActionValueHeads, whose copy cannot be made without data
            online, target = (ActionValues(base.hidden_size, base.vocab_size, 0.0) for _ in range(2))
            self.heads = nn.ModuleList([ValueHead(base.hidden_size), online, target.requires_grad_(False)])
        self.hold("Q heads")
        self.rewards = [self.model() for _ in range(config.reward_model.members)] if config.reward_model.enabled else []
        self.hold("reward model")
        if self.settings["gradient_checkpointing"]:
            for model in filter(None, (self.policy, self.value)):
                checkpoint_layers(model.model, True)
        self.weights = [
            p for m in filter(None, (self.policy, self.value)) for p in m.model.parameters() if p.requires_grad
        ]
        self.weights += [p for p in self.heads.parameters() if p.requires_grad] if self.heads is not None else []
        in_8_bits = self.settings.get("optimizer") == "adamw_8bit"
        own = [first_part(p, ranks) for p in self.weights]
        self.moments = [t for p in own for _ in range(2) for t in _moment(p, in_8_bits=in_8_bits)]
        self.hold("optimizer")
        self.parts: Parts | None = None
        if ranks.sharded:
            frozen = self.reference.model.parameters() if self.reference not in (None, base) else ()
            lets_go = not agent.Settings.learns_with_reference(self.settings)
            self.parts = Parts(self.weights, list(frozen), ranks, lets_reference_go=lets_go)
        self.hold("parts of the weights")
        stepped = self.settings.get("collect", agent.collect) == "step"  # by the first process alone
        self.slots = config.agent.environments if stepped else self.share(config.agent.environments)

    def model(self, network_config: Any = None, *, learns: bool = False) -> LanguageModel:
        """Another language model, of the run's kind or of this one; weights that learn are float32 where products are rounded.

        Args:
            network_config: of the model; None takes the run's.
            learns: False for a frozen model.
        """
        from transformers import AutoModelForCausalLM

        settings = self.config.model
        auto: Any = AutoModelForCausalLM
        dtype = product_dtype(self.settings["precision"], pick_device(settings.device))
        masters = learns and dtype != torch.float32 and not self.config.model.lora
        stored = torch.float32 if masters else DTYPES[settings.dtype]
        network = auto.from_config(network_config or self.network_config, dtype=stored)
        model = Outline(network, NoTokens(), settings.name)
        model.product_dtype = None if dtype in (torch.float32, network.dtype) else dtype
        if settings.quantization is not None:
            quantize(model)
        return model

    def hold(self, name: str) -> None:
        """Count what is alive more than before under a name."""
        if self.live.now > self.seen:
            self.held[name] = self.live.now - self.seen
        self.seen = self.live.now

    def plan(self, libraries: int) -> MemoryPlan:
        """Run the phases, one after the other."""
        phases = {"generation": self.generation()}
        if self.reference is not None:
            phases["reference"] = self.live.peak_of(self.reference_pass)
        phases["learning"] = self.live.peak_of(self.learning)
        resuming = 0
        if self.parts is not None:
            phases["learning"] -= self.parts.reference
            phases["optimizer step"] = self.parts.step(self.live.now)
            resuming = self.parts.resuming(self.live.now, self.moments)
        trainable = sum(p.numel() for p in self.weights)
        return MemoryPlan(self.parameters, trainable, libraries, self.held, phases, resuming)

    @torch.no_grad()
    def generation(self) -> int:
        """Prompts are read, and keys and values grow to the length of prompt and response."""
        before = self.live.now
        slots, kept = self.slots, list[Tensor]()
        if self.perturbs:  # one copy of the weights after the other decodes its slots; then the weights are put back
            slots = max(1, slots // int(self.settings["group_size"]))
            kept = [weight.detach().clone() for weight in self.weights]
        model = self.policy.decoding_copy()
        rounded = self.live.now - before
        cache: Any = None

        def read() -> None:
            nonlocal cache
            given = {"input_ids": self.ids(slots, self.prompt), "use_cache": True}
            with model.running():
                out = model.trunk(**given)
            cache = getattr(out, cache_argument(type(model.trunk).forward), None) or out.past_key_values

        peak = self.live.peak_of(read)
        stored: int = sum(t.untyped_storage().nbytes() for layer in cache.layers for t in (layer.keys, layer.values))
        columns = _capacity(self.prompt, self.prompt + self.response)
        drawn = 4 * LOGIT_COPIES * slots * model.vocab_size
        kept.clear()
        return max(peak, before + rounded + stored * columns // self.prompt + drawn)

    @torch.no_grad()
    def reference_pass(self) -> None:
        """Log-probabilities of a micro-batch."""
        assert self.reference is not None
        self.log_probs(self.reference, self.rows(int(self.settings["n_episodes"])))

    def learning(self) -> None:
        """Two micro-batches, where a minibatch has that many: the second one meets the first one's gradients.

        Evolution strategies add up noise in the gradients' place, a weight at a time.
        """
        if self.perturbs:
            for weight in self.weights:
                weight.grad = torch.zeros_like(weight)
            for weight in self.weights:
                assert weight.grad is not None
                weight.grad.add_(torch.randn(weight.shape).to(weight.dtype))
            self.forget_gradients()
            return
        episodes = int(self.settings["n_episodes"])
        minibatch = min(int(self.settings.get("batch_size") or episodes), episodes)
        rows = self.rows(minibatch)
        for _ in range(min(2, -(-self.share(minibatch) // rows))):
            loss = self.log_probs(self.policy, rows).sum() if self.heads is None else self.values_too(self.heads, rows)
            if self.value is not None:
                loss = loss + self.states(self.value, rows).sum()
            loss.backward()  # type: ignore[no-untyped-call]
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Free the gradients."""
        for weight in self.weights:
            weight.grad = None

    def values_too(self, heads: nn.ModuleList, rows: int) -> Tensor:
        """ILQL's losses of a micro-batch: cross-entropy, and both Q heads and the value head on the same states."""
        hidden = self.states(self.policy, rows)
        tokens, limits = torch.zeros(len(hidden), dtype=torch.long), Limits(0, max_new_tokens=self.response)
        logs, _ = token_log_probs(self.policy, hidden, tokens, tokens, Sampling(), limits, entropy=False)
        value_head, online, _ = heads
        found = token_q(online, hidden, tokens, tokens, limits)  # type: ignore[arg-type]
        loss: Tensor = (logs + value_head(hidden) + q_loss(found, logs.detach()) + conservative_loss(found)).sum()
        return loss

    def log_probs(self, model: LanguageModel, rows: int) -> Tensor:
        """Log-probabilities ``[rows * response]`` of a micro-batch's response tokens."""
        hidden = self.states(model, rows)
        tokens = torch.zeros(len(hidden), dtype=torch.long)
        limits = Limits(0, max_new_tokens=self.response)
        entropy = torch.is_grad_enabled() and (
            self.settings.get("ent_coef", 0) > 0 or bool(self.settings.get("ent_target"))
        )
        logs, entropies = token_log_probs(model, hidden, tokens, tokens, Sampling(), limits, entropy=entropy)
        return logs if entropies is None else logs + entropies

    def states(self, model: LanguageModel, rows: int) -> Tensor:
        """Hidden states ``[rows * response, D]`` before a micro-batch's response tokens."""
        hidden = model.hidden(self.ids(rows, self.prompt + self.response))
        return hidden[:, self.prompt - 1 : -1].flatten(0, 1)

    def share(self, rows: int) -> int:
        """The most of so many rows, or slots, that a process gets."""
        return -(-rows // self.ranks.size)

    def rows(self, episodes: int) -> int:
        """Sequences of a micro-batch, of so many episodes that the processes share out."""
        tokens = int(self.settings["tokens_per_batch"])
        return max(1, min(tokens // (self.prompt + self.response), self.share(episodes)))

    def ids(self, rows: int, columns: int) -> Tensor:
        """Ids ``[rows, columns]``."""
        return torch.zeros(rows, columns, dtype=torch.long)


def _moment(weight: Tensor, *, in_8_bits: bool) -> list[Tensor]:
    """What an optimizer keeps for one of a weight's two moments; in 8 bits a byte a number, and a float a block."""
    if not in_8_bits or weight.numel() < SMALLEST_IN_8_BITS:
        return [torch.zeros_like(weight, dtype=torch.float32)]
    return [torch.zeros_like(weight, dtype=torch.uint8), torch.zeros(-(-weight.numel() // BLOCK_IN_8_BITS))]


def _capacity(first: int, last: int) -> int:
    """Columns of the rectangle of keys and values once it has grown to a length; see :mod:`rlhf_gym.lm.cache`."""
    columns = first + SPARE
    while columns < last:
        columns += 1 + max(SPARE, columns // 2)
    return columns


@cache  # planning itself must not count as theirs
def _resident_bytes() -> int:
    """Bytes of this process: Python and the libraries that training needs."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def smaller(config: Config, ranks: Ranks | None = None) -> Iterator[tuple[list[str], Config]]:
    """Configurations that take less memory, one change after the other, each with the changes so far as ``--set`` takes them.

    What costs no quality comes first: activations computed anew, smaller micro-batches; then rounded products, a shared value
    head, moments in 8 bits (where their library is installed), an adapter in place of all weights, and its base in 4 bits.

    What a run would refuse is left out.

    Args:
        config: the run's configuration.
        ranks: the processes that are to learn together; None for a single one.
    """
    changes: list[str] = []
    wanted: list[tuple[str, Any]] = [
        ("gradient_checkpointing", True), ("tokens_per_batch", 1024), ("precision", "bf16"), ("value_network", "shared")
    ]  # fmt: skip
    quantizes = find_spec("bitsandbytes") is not None
    if quantizes and not (ranks and ranks.sharded):
        wanted.append(("optimizer", "adamw_8bit"))
    candidates = [
        f"agent.{name}={str(value).lower()}" for name, value in wanted
        if (now := config.agent.settings.get(name)) not in (None, value) and (name != "tokens_per_batch" or now > value)
    ]  # fmt: skip
    if not config.model.lora:
        candidates.append("model.lora={rank: 8}")
    if quantizes and config.model.quantization is None:
        candidates.append("model.quantization=nf4")
    for change in candidates:
        try:
            config = build(merge(to_settings(config), parse_override(change)))
        except ConfigError:
            continue  # this agent, or another setting, does not go with it
        changes.append(change)
        yield list(changes), config
