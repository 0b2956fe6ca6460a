"""The ways in which a server takes new weights, each under a label that the server itself can be asked for."""

from __future__ import annotations

import math
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path

from rlhf_gym.errors import EngineError
from rlhf_gym.lm.engines.served_folder import save_uniform, save_untied, shared_output
from rlhf_gym.lm.engines.server_connection import ServerConnection
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import save_adapter

RELOAD = ("/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/weight_info")
"""The paths that vLLM offers with ``VLLM_SERVER_DEV_MODE=1`` and that new weights in full need."""
ADAPTER = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
"""The paths that vLLM offers with ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``."""
PROBE_NOISE = 0.01
"""Nats by which a uniform distribution may differ: bfloat16, and rows of padding in the output layer."""


class ServerWeights(ABC):
    """Weights on their way to a server, by files in a folder that both see.

    Args:
        connection: to the server.
        folder: where weights are written; the last ones stay, so that a server that was restarted gets them again.
        served: the model's name at the server.
    """

    def __init__(self, connection: ServerConnection, folder: Path, served: str) -> None:
        self.connection, self.folder, self.served = connection, folder, served
        self.label = ""

    @property
    def model(self) -> str:
        """The name that requests ask for."""
        return self.served

    def put(self, model: LanguageModel, label: str) -> None:
        """Write the model's weights and have the server load them.

        Args:
            model: the model that learns.
            label: a name that no other weights have.

        Raises:
            EngineError: they cannot be written, or the server does not take them.
        """
        earlier, self.label = self.label, label
        target = self.folder / label
        try:
            self.write(model, target)
        except OSError as error:
            raise EngineError(
                f"the weights for engine {self.connection.name} cannot be written to {target}: {error}"
            ) from error
        self.load()
        if earlier:
            self.leave(earlier)
            shutil.rmtree(self.folder / earlier, ignore_errors=True)

    @abstractmethod
    def write(self, model: LanguageModel, target: Path) -> None:
        """Write what the server is to load.

        Args:
            model: the model that learns.
            target: folder, which does not exist yet.
        """

    @abstractmethod
    def load(self) -> None:
        """Have the server load the last weights that were written.

        Raises:
            EngineError: it does not answer, or refuses them.
        """

    @abstractmethod
    def held(self) -> bool:
        """True where the server says that it holds the weights of the last label.

        Raises:
            EngineError: it does not answer.
        """

    def leave(self, label: str) -> None:  # noqa: B027 - new weights in full replace the old
        """Let earlier weights go.

        Args:
            label: their label.
        """


class ReloadedWeights(ServerWeights):
    """All weights, as a model's folder that the server reloads in place."""

    def put(self, model: LanguageModel, label: str) -> None:
        """Write the model's weights and have the server load them; the first time, see that it loads all of them.

        Args:
            model: the model that learns.
            label: a name that no other weights have.
        """
        if not self.label and shared_output(model) is not None:
            self._check_output_layer(model)
        super().put(model, label)

    def write(self, model: LanguageModel, target: Path) -> None:
        """Write the model, an adapter merged into it.

        Args:
            model: the model that learns.
            target: folder.
        """
        save_untied(model, target)

    def _check_output_layer(self, model: LanguageModel) -> None:
        """Refuse a server that goes on with its old output layer.

        It is given equal embeddings for all tokens for a moment: then every token has the same probability, or the output
        layer is stale.
        """
        self.label = "rlhf-gym-probe"
        target = self.folder / self.label
        save_uniform(model, target)
        self.load()
        reply = self.connection.call("POST", "/v1/completions", {
            "model": self.served, "prompt": [model.tokenizer.eos_id], "max_tokens": 1, "temperature": 1.0, "logprobs": 0,
            "ignore_eos": True, "stop_token_ids": [model.tokenizer.eos_id], "top_k": 0, "top_p": 1.0, "min_tokens": 0,
            "seed": 0,
        })  # fmt: skip
        self.label = ""
        shutil.rmtree(target, ignore_errors=True)
        try:
            log_prob = float(reply["choices"][0]["logprobs"]["token_logprobs"][0])
        except (TypeError, KeyError, IndexError, ValueError):
            raise EngineError(
                f"engine {self.connection.name} returns no log-probabilities (logprobs); vLLM does"
            ) from None
        if abs(log_prob + math.log(model.vocab_size)) > PROBE_NOISE:
            raise EngineError(
                f"engine {self.connection.name} goes on with the output layer that it started with, since {model.name!r} "
                "shares it with the input and its server has packed it: serve a folder that "
                "rlhf_gym.lm.engines.served_folder.save_untied(model, folder) has written"
            )

    def load(self) -> None:
        """Reload, forget what was cached with the old weights, and only then take the new label.

        Raises:
            EngineError: the server does not answer, refuses them, or is busy with others' prompts.
        """
        call = self.connection.call
        call(
            "POST",
            "/collective_rpc",
            {"method": "reload_weights", "kwargs": {"weights_path": str(self.folder / self.label)}},
        )
        end = time.monotonic() + self.connection.patience
        while not (call("POST", "/reset_prefix_cache") or {}).get("success", True):  # something runs that was given up
            if time.monotonic() > end:
                raise EngineError(
                    f"engine {self.connection.name} cannot forget the prompts that it has read with older weights, since "
                    "others use it at the same time: give the run a server of its own"
                )
            time.sleep(0.1)
        call("POST", "/update_weight_version", {"new_version": self.label})

    def held(self) -> bool:
        """Ask for the version of its weights."""
        said = self.connection.call("GET", "/weight_info")
        return isinstance(said, dict) and said.get("weight_version") == self.label


class HotSwappedAdapter(ServerWeights):
    """A LoRA adapter on the server's own base, under a new name for every version."""

    @property
    def model(self) -> str:
        """The adapter's name: the server serves it as a model of its own."""
        return self.label

    def write(self, model: LanguageModel, target: Path) -> None:
        """Write the adapter in peft's format.

        Args:
            model: the model that learns.
            target: folder.
        """
        save_adapter(model, target)

    def load(self) -> None:
        """Load the adapter beside the one before."""
        path = str(self.folder / self.label)
        self.connection.call("POST", "/v1/load_lora_adapter", {"lora_name": self.label, "lora_path": path})

    def held(self) -> bool:
        """Look for the adapter among the models that the server lists."""
        return self.label in served_models(self.connection)

    def leave(self, label: str) -> None:
        """Unload an adapter; a server that was restarted has forgotten it.

        Args:
            label: its label.
        """
        if label in served_models(self.connection):
            self.connection.call("POST", "/v1/unload_lora_adapter", {"lora_name": label})


def served_models(connection: ServerConnection) -> list[str]:
    """The names of the models and adapters that a server lists, its own model first.

    Raises:
        EngineError: it does not answer, or lists none.
    """
    said = connection.call("GET", "/v1/models")
    listed = said.get("data") if isinstance(said, dict) else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) and "id" in one for one in listed):
        raise EngineError(
            f"{connection.url}/v1/models lists no models: expected an OpenAI-compatible completions server"
        )
    return [str(one["id"]) for one in sorted(listed, key=lambda one: one.get("parent") is not None)]


def choose_weights(
    connection: ServerConnection, folder: Path, model: LanguageModel, offered: Collection[str]
) -> ServerWeights:
    """Choose how the weights reach a server: an adapter alone where it can take one, else all weights.

    Args:
        connection: to the server.
        folder: where weights are written.
        model: the model that learns.
        offered: the server's paths.

    Raises:
        EngineError: it offers no way, or does not serve exactly one model.
    """
    adapters = model.adapter is not None and all(path in offered for path in ADAPTER)
    missing = [path for path in RELOAD if path not in offered]
    if not adapters and missing:
        more = " (or, for the LoRA adapter alone, with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora)"
        raise EngineError(
            f"engine {connection.name} cannot take new weights: its server lacks {', '.join(missing)}. Start vLLM (0.32 has "
            f"them) with VLLM_SERVER_DEV_MODE=1{more * (model.adapter is not None)}"
        )
    names = served_models(connection)
    if not names:
        raise EngineError(f"engine {connection.name} serves no model")
    return (HotSwappedAdapter if adapters else ReloadedWeights)(connection, folder, names[0])
