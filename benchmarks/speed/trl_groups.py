"""TRL's GRPO and RLOO trainers as contenders of `ppo.py`: the trainers' own loops, stopped after each rollout's last step.

Any TRL with these trainers will do, the installed one too. Each of 8 prompts gets a group of 8 responses; a minibatch is two
groups, and every rollout is learned from ``passes`` times, as in ours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from contenders import EPISODES, GROUP, KL, LEARNING_RATE, MINIBATCH, Phases, network, nothing, prompts, timed
from transformers import TrainerCallback
from trl_tokenizer import tokenizer


def run(name: str, length: int, passes: int, wait: Callable[[Phases], bool]) -> None:
    """Train; ``wait`` is called after each iteration with its phases, and returns True to take another.

    Args:
        name: ``"TRL GRPO"`` or ``"TRL RLOO"``.
        length: response tokens, exactly.
        passes: optimizer passes over a rollout.
        wait: see above.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    kinds: dict[str, tuple[Any, Any]] = {"TRL GRPO": (GRPOTrainer, GRPOConfig), "TRL RLOO": (RLOOTrainer, RLOOConfig)}
    trainer_kind, config_kind = kinds[name.removesuffix(", bf16")]
    spent: Phases = {}
    steps = passes * EPISODES // MINIBATCH

    class Pause(TrainerCallback):
        """Reports each iteration's phases, and waits before the next."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % steps == 0:
                done = dict(spent)
                spent.clear()
                if not wait(done):
                    raise KeyboardInterrupt

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        assert len(completions) == EPISODES
        assert all(len(completion) == length for completion in completions)
        return nothing(prompts, completions)

    with tempfile.TemporaryDirectory() as folder:
        network().save_pretrained(folder)  # the trainers load their reference from the policy's folder
        config = config_kind(
            output_dir=folder, per_device_train_batch_size=MINIBATCH, generation_batch_size=EPISODES,
            num_iterations=passes, num_generations=GROUP, max_completion_length=length, beta=KL,
            generation_kwargs={"suppress_tokens": [0, 1]}, temperature=1.0, top_p=1.0, top_k=0, max_steps=10**6,
            learning_rate=LEARNING_RATE, lr_scheduler_type="constant", use_cpu=True, bf16=name.endswith("bf16"), report_to=[],
            save_strategy="no", gradient_checkpointing=False, logging_strategy="no", disable_tqdm=True,
            model_init_kwargs={"dtype": "float32"},
        )  # fmt: skip
        trainer = trainer_kind(
            model=folder, args=config, processing_class=tokenizer(), reward_funcs=reward, callbacks=[Pause()],
            train_dataset=Dataset.from_dict({"prompt": prompts()}),
        )  # fmt: skip
        trainer._generate = timed(trainer._generate, spent, "generation")
        reference = trainer.ref_model
        reference.forward = timed(reference.forward, spent, "reference")
        try:
            trainer.train()
        except KeyboardInterrupt:
            return
