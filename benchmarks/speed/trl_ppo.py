"""TRL's PPO trainer as a contender of `ppo.py`: the trainer's own loop, stopped at the end of each of its steps.

TRL 1.12 is the last release that has one (`trl.experimental.ppo`); `--trl FOLDER` puts a folder that holds it before the
installed TRL: ``pip install --no-deps --target FOLDER trl==1.12.0``.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from contenders import EPISODES, LEARNING_RATE, VOCABULARY, Phases, network, timed
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainerCallback
from trl_tokenizer import prompt_ids, tokenizer


def run(length: int, passes: int, wait: Callable[[Phases], bool], *, bf16: bool = False) -> None:
    """Train; ``wait`` is called at the end of each step with its phases, and returns True to take another.

    This trainer demands a value function of its own, here a network as large as the policy, and a reward model, here a layer
    of width 16 that costs next to nothing. Responses have no stop token, hence their full length.

    Args:
        length: response tokens.
        passes: learning passes over a rollout.
        wait: see above.
        bf16: train in mixed precision.

    Raises:
        SystemExit: the TRL found has no PPO trainer.
    """
    try:
        from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
    except ImportError:
        raise SystemExit(
            "this TRL has no PPO trainer; 1.12.0 is the last that has: pip install --no-deps --target FOLDER trl==1.12.0, "
            "and --trl FOLDER"
        ) from None
    from datasets import Dataset

    policy = network()
    value_config = LlamaConfig(**(policy.config.to_dict() | {"num_labels": 1}))
    torch.manual_seed(1)
    value = LlamaForSequenceClassification(value_config)
    reward = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
            num_labels=1, pad_token_id=1,
        )
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": prompt_ids()})
    spent: Phases = {}

    class Pause(TrainerCallback):
        """Reports each step's phases, and waits before the next."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            done = dict(spent)
            spent.clear()
            if not wait(done):
                raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder, per_device_train_batch_size=EPISODES, gradient_accumulation_steps=1,
            num_mini_batches=4, num_ppo_epochs=passes, total_episodes=EPISODES * 1000, response_length=length,
            local_rollout_forward_batch_size=EPISODES, num_sample_generations=0, temperature=1.0, use_cpu=True,
            learning_rate=LEARNING_RATE, report_to=[], save_strategy="no", bf16=bf16, gradient_checkpointing=False,
            logging_steps=10**6, disable_tqdm=True,
        )  # fmt: skip
        reference = copy.deepcopy(policy)
        trainer = PPOTrainer(
            args=config, processing_class=tokenizer(), model=policy, ref_model=reference, reward_model=reward,
            train_dataset=data, value_model=value, eval_dataset=data, callbacks=[Pause()],
        )  # fmt: skip
        ppo_trainer.batch_generation = timed(ppo_trainer.batch_generation, spent, "generation")
        reference.forward = timed(reference.forward, spent, "reference")  # type: ignore[method-assign]
        try:
            trainer.train()
        except KeyboardInterrupt:
            return
