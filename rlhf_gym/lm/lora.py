"""Low-rank adapters (LoRA; Hu et al. 2022): a language model that learns few weights on top of a frozen base.

``y = W x + (alpha / rank) B A x`` in the adapted layers: ``W`` is the base's and never moves, ``A`` is random and ``B`` 0 at
the start, so the model begins as its base. The layers are those of the library `peft` (extra ``lora``).

The base and everything adapted from it are networks of their own over the *same tensors*: policy, reference, value network
and lagging copies cost the base's memory once, and none of them has to be switched while another one computes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.lm.language_model import LanguageModel, Seq2SeqModel
from rlhf_gym.lm.loading import one_thread_loads
from rlhf_gym.lm.quantization import as_stored, in_four_bits, whole_weights
from rlhf_gym.lm.tokenizer import AnyTokenizer

NAME = "default"
"""The name of a network's one adapter in peft."""
WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"  # peft's own
PREFIX = "base_model.model."  # before every weight's name in peft's files
PROBED = 64  # elements of each weight in a fingerprint


@dataclass(frozen=True)
class Lora:
    """Settings of a low-rank adapter: the layers it changes, and its size.

    Attributes:
        rank: rank of each adapted layer's change, at least 1.
        alpha: the change is multiplied by ``alpha / rank``; None is ``2 * rank``.
        targets: names of linear layers, or ends of their names (``"c_attn"``, ``"mlp.c_fc"``); empty: all linear layers except
            the output layer, those whose weights a network reads without calling them (Mamba's ``out_proj``), and those whose
            names peft takes for a mixture's experts.

    Raises:
        ConfigError: a value out of its range.
    """

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ConfigError(f"lora.rank must be a whole number of at least 1, got {self.rank!r}")
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if self.alpha is not None and not (number and 0 < self.alpha < float("inf")):
            raise ConfigError(
                f"lora.alpha must be a finite number above 0, or None (twice the rank); got {self.alpha!r}"
            )
        if isinstance(self.targets, str) or not all(isinstance(name, str) and name for name in self.targets):
            raise ConfigError(f"lora.targets must be a list of names of layers, got {self.targets!r}")

    @classmethod
    def of(cls, given: Mapping[str, Any] | Lora) -> Self | Lora:
        """Settings from ``{"rank": 8, "alpha": 16, "targets": ["c_attn"]}``, each of which may be left out.

        Raises:
            ConfigError: an unknown key, a value out of its range, or dropout.
        """
        if isinstance(given, Lora):
            return given
        if not isinstance(given, Mapping):
            raise ConfigError(f"lora must be a mapping such as {{'rank': 8, 'alpha': 16}}, got {type(given).__name__}")
        settings = dict(given)
        if settings.pop("dropout", 0):
            raise ConfigError(
                f"lora.dropout must be 0, got {given['dropout']!r}: with it, log-probabilities change from pass to pass, "
                "and the first ratio is not 1"
            )
        known = ("rank", "alpha", "targets")
        if strange := [key for key in settings if key not in known]:
            raise ConfigError(f"there is no lora.{strange[0]}; expected some of {', '.join(known)}")
        targets = settings.pop("targets", None) or ()
        return cls(targets=tuple(targets) if isinstance(targets, list | tuple) else targets, **settings)

    def settings(self) -> dict[str, Any]:
        """The settings as JSON values; :meth:`of` is the opposite."""
        return {**asdict(self), "targets": list(self.targets)}

    def merged_weights(self, network: nn.Module) -> dict[str, Tensor]:
        """All weights of an adapted network under the base's names, each change added to its layer.

        A linear layer's weight stays ``[out, in]``, in the base's dtype; the sum is taken in float32.
        """
        from peft.tuners.lora import LoraLayer

        out = {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in whole_weights(network).items()
            if ".lora_" not in name
        }
        for name, layer in network.named_modules():
            if isinstance(layer, LoraLayer):
                change: Any = layer
                weight = out[f"{name}.weight"]
                delta = as_stored(change.get_base_layer(), change.get_delta_weight(NAME).detach())
                out[f"{name}.weight"] = (weight.float() + delta.float()).to(weight.dtype)
        return out


def require_peft() -> None:
    """Refuse to go on without `peft`; it is not imported, which takes a second.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec("peft") is None:
        raise ConfigError("LoRA needs the library peft: pip install 'rlhf-gym[lora]'")


def adapted(base: LanguageModel, lora: Lora, *, seed: int = 0) -> LanguageModel:
    """A language model that begins as ``base`` and of which only a new adapter is trained.

    It shares the base's tensors, which take no gradients from now on. Adapters are float32 for every dtype of the base.

    Args:
        base: the model to adapt, causal or encoder-decoder; it stays usable as the model without the adapter.
        lora: the adapter's settings.
        seed: seed of ``A``'s random weights.

    Raises:
        ConfigError: the base has an adapter already, a target names no linear layer of it or one that cannot be adapted, no
            layer is left, or `peft` is not installed.
    """
    require_peft()
    if base.adapter is not None:
        raise ConfigError(
            f"{base.name!r} has a LoRA adapter already, and an adapter needs a base without one: leave lora out to go on with "
            "that adapter, or save the model and load it again, which merges the adapter into the weights"
        )
    with one_thread_loads():
        from peft import LoraConfig, inject_adapter_in_model

    layers = dict(target_layers(base, lora.targets))
    other = copy.copy(base)
    other.base, other.adapter = base, lora
    other = other.frozen_copy()  # shares the base's tensors, which are all that there are so far
    config = LoraConfig(
        r=lora.rank, lora_alpha=2 * lora.rank if lora.alpha is None else lora.alpha, lora_dropout=0.0, bias="none",  # type: ignore[arg-type]  # it takes fractions
        target_modules=list(layers), fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in layers.values()),
        task_type="SEQ_2_SEQ_LM" if base.encoder_decoder else "CAUSAL_LM", base_model_name_or_path=base.name,
    )  # fmt: skip
    with one_thread_loads(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # where a model mixes both kinds of layers
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, other.model, NAME)
        except ValueError as error:  # a layer that peft refuses in this family
            family = type(base.model).__name__
            raise ConfigError(
                f"peft cannot adapt {base.name!r} ({family}) so: {error} Give others by lora.targets"
            ) from error
    for parameter in adapter_weights(other):
        parameter.data = parameter.data.float()
    return other


def target_layers(base: LanguageModel, targets: tuple[str, ...] = ()) -> list[tuple[str, nn.Module]]:
    """The linear layers that some names match, with their full names; without names, all that can be adapted.

    Args:
        base: the model.
        targets: names of linear layers, or ends of their names.

    Raises:
        ConfigError: a name that no linear layer has, or the name of one that cannot be adapted.
    """
    linear = [
        (name, layer)
        for name, layer in base.model.named_modules()
        # Not of a kind of its own that gives more than one tensor (Llama 4's router).
        if (type(layer).forward in (nn.Linear.forward, Conv1D.forward) or in_four_bits(layer))
        and layer is not base.head
    ]
    reasons = {name: reason for name, _ in linear if (reason := _why_not(base.model, name))}
    for target in targets:
        if wrong := [name for name in reasons if _matches(target, name)]:
            raise ConfigError(
                f"lora.targets: {wrong[0]!r} of {base.name!r} ({type(base.model).__name__}) cannot be adapted: "
                f"{reasons[wrong[0]]}; leave it out"
            )
        if not any(_matches(target, name) for name, _ in linear):
            there = dict.fromkeys(name.rpartition(".")[2] for name, _ in linear)
            raise ConfigError(
                f"lora.targets: {base.name!r} has no linear layer {target!r} that can be adapted; expected some of "
                f"{', '.join(there)}"
            )
    found = [
        (name, layer)
        for name, layer in linear
        if name not in reasons and (not targets or any(_matches(t, name) for t in targets))
    ]
    if not found:
        raise ConfigError(f"LoRA: {base.name!r} ({type(base.model).__name__}) has no linear layer that can be adapted")
    return found


def _why_not(network: nn.Module, name: str) -> str:
    """The reason why a linear layer cannot be adapted; empty where it can.

    Args:
        network: the whole network.
        name: the layer's full name.
    """
    above, _, last = name.rpartition(".")
    mixer = network.get_submodule(above)
    if hasattr(mixer, "A_log") and hasattr(mixer, "D") and last in ("x_proj", "dt_proj", "out_proj"):
        return "the network's state-space kernels read its weight without calling it"
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # a peft that takes names as they are
        return ""
    from peft import LoraConfig

    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, network, None)
        kept = name in (config.target_modules or ())
    except ValueError:  # of experts that are stored together
        kept = False
    return "" if kept else "peft takes its name for that of the experts, which are no linear layers in transformers 5"


def _matches(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


def adapter_weights(model: LanguageModel) -> list[nn.Parameter]:
    """The weights of a model's adapter; none where it has none."""
    return [p for name, p in model.model.named_parameters() if ".lora_" in name]


def begins_as_base(model: LanguageModel) -> bool:
    """True of an adapted model that nobody has trained yet: ``B`` is 0, and its outputs are its base's."""
    return not any(bool(p.any()) for name, p in model.model.named_parameters() if ".lora_B." in name)


def save_adapter(model: LanguageModel, folder: Path | str) -> None:
    """Write a model's adapter in peft's format: ``PeftModel.from_pretrained(base, folder)`` reads it.

    Args:
        model: an adapted model.
        folder: created if it is missing.

    Raises:
        ModelError: the model has no adapter.
    """
    if model.adapter is None:
        raise ModelError(f"{model.name!r} has no adapter to save")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    network: Any = model.model
    network.peft_config[NAME].save_pretrained(folder)
    weights = {
        PREFIX + name.replace(f".{NAME}.", "."): p.detach().cpu().contiguous()
        for name, p in network.named_parameters()
        if ".lora_" in name
    }
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_adapter(base: LanguageModel, folder: Path | str) -> LanguageModel:
    """A base with an adapter from a folder of :func:`save_adapter` or of peft; training can go on.

    Args:
        base: the model that the adapter was made for.
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        ModelError: no adapter there, one of another kind, or one that does not fit the base.
        ConfigError: as :func:`adapted`.
    """
    folder = Path(folder)
    try:
        data = dict(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"there is no LoRA adapter in {str(folder)!r}: {error}. Expected peft's {CONFIG_FILE} and {WEIGHTS_FILE}"
        ) from error
    if data.get("task_type") == "SEQ_CLS":
        raise ModelError(
            f"{folder} holds the adapter of a sequence classifier, which is a reward and not a language model: give it as one, "
            f"load_reward({str(folder)!r}) or --reward {folder}"
        )
    kind, bias = data.get("peft_type"), data.get("bias", "none")
    special = [f"type {kind!r}"] * (kind != "LORA") + [f"bias {bias!r}"] * (bias != "none")
    special += [
        key for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save") if data.get(key)
    ]
    special += [f"no {key}" for key in ("r", "lora_alpha") if key not in data]
    if special:
        raise ModelError(
            f"the adapter in {folder} is not a plain LoRA ({', '.join(special)}); merge it into its base with peft first"
        )
    names = dict.fromkeys(key.removeprefix(PREFIX).partition(".lora_")[0] for key in weights)
    there = {name for name, _ in target_layers(base)}
    if strange := [name for name in names if name not in there]:
        raise ModelError(f"the adapter in {folder} does not fit {base.name!r}, which has no layer {strange[0]!r}")
    model = adapted(base, Lora(int(data["r"]), float(data["lora_alpha"]), tuple(names)))
    own = {PREFIX + n.replace(f".{NAME}.", "."): p for n, p in model.model.named_parameters() if ".lora_" in n}
    shapes = {name: tuple(p.shape) for name, p in own.items()}
    if (found := {name: tuple(tensor.shape) for name, tensor in weights.items()}) != shapes:
        wrong = next(name for name in {**shapes, **found} if found.get(name) != shapes.get(name))
        raise ModelError(
            f"the adapter in {folder} does not fit {base.name!r}: {wrong} has the shape {found.get(wrong)}, expected "
            f"{shapes.get(wrong)}"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
    return model


def from_peft(model: nn.Module, tokenizer: AnyTokenizer, name: str) -> LanguageModel:
    """A model with an adapter that peft has put on it; training can go on.

    Args:
        model: a ``PeftModel``. It is taken apart: its base stays in use.
        tokenizer: the base's, ours or a transformers one.
        name: the name that the base was loaded from.

    Raises:
        ModelError: as :func:`load_adapter`; or it is no ``PeftModel`` with one active adapter.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    if not isinstance(model, PeftModel) or len(active := model.active_adapters) != 1:
        raise ModelError(
            f"{name!r} must be a model of peft with one active adapter, got {type(model).__name__}: load the base without it, "
            "and peft.PeftModel.from_pretrained(base, folder)"
        )
    network: Any = model.get_base_model()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, selected_adapters=active)
        for place, layer in list(network.named_modules()):
            if isinstance(layer, LoraLayer):
                network.set_submodule(place, layer.get_base_layer())
        vars(network).pop("peft_config", None)
        kind = Seq2SeqModel if network.config.is_encoder_decoder else LanguageModel
        named = Path(folder) / active[0]
        return load_adapter(kind(network, tokenizer, name), named if named.is_dir() else folder)


def fingerprint(model: LanguageModel) -> str:
    """A digest of the names, the shapes and some elements of all weights, which tells one base from another."""
    digest = hashlib.sha256()
    for name, tensor in model.model.state_dict().items():
        flat = tensor.detach().reshape(-1)
        places = torch.linspace(0, len(flat) - 1, PROBED, device=flat.device).round().long()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(flat[places].float().cpu().numpy().tobytes())
    return digest.hexdigest()
