"""No agent's loss depends on what others said as labels, or on how well the model would have predicted it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from ppo_setups import assert_same_weights, learn, weights
from talking import letters_talk, talker

from rlhf_gym.agents import A2C, GRPO, GSPO, PPO, RAFT, REINFORCE, RLOO, TRPO, OnlineDPO, ReMax
from rlhf_gym.agents.common import forward
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sequences import SequenceBatch

AGENTS: dict[Any, dict[str, Any]] = {
    PPO: {"ent_coef": 0.01, "kl_coef": 0.05}, A2C: {}, TRPO: {}, GRPO: {"group_size": 4}, GSPO: {"group_size": 4},
    RLOO: {"group_size": 4}, ReMax: {}, REINFORCE: {}, RAFT: {"group_size": 4}, OnlineDPO: {},
}  # fmt: skip


class ForeignLabels:
    """Permutes the ids of others and of padding in packed sequences, but for what the model reads.

    Its states there, from which nobody's loss may predict anything, become noise.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[
            tuple[torch.Tensor, torch.Tensor, torch.Tensor]
        ] = []  # labels, what is read, where ours are predicted
        self.pack, self.hidden, self.permuted, self.passes = forward.pack_turns, LanguageModel.hidden, 0, 0
        monkeypatch.setattr(forward, "pack_turns", self.packed)
        foreign = self

        def hidden(model: LanguageModel, ids: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            return foreign.states(model, ids, *args, **options)

        monkeypatch.setattr(LanguageModel, "hidden", hidden)

    def packed(self, rows: Any, pad_id: int, **options: Any) -> SequenceBatch:
        batch = self.pack(rows, pad_id, **options)
        places = batch.response_mask.nonzero(as_tuple=True)
        columns = batch.predicted_from[places]
        predicts = torch.zeros(batch.ids.shape, dtype=torch.bool)
        predicts[places[0], columns] = True
        others = torch.ones(batch.ids.shape, dtype=torch.bool)
        others[places[0], columns + 1] = False
        generator = torch.Generator().manual_seed(len(self.read))
        labels = batch.ids.clone()
        labels[others] = labels[others][torch.randperm(int(others.sum()), generator=generator)]
        responses = batch.responses.clone()
        responses[~batch.response_mask] = torch.randint(
            1, 28, (int((~batch.response_mask).sum()),), generator=generator
        )
        self.permuted += int((labels != batch.ids).sum())
        self.read.append((labels, batch.ids, predicts))
        return replace(batch, ids=labels, responses=responses)

    def states(self, model: LanguageModel, ids: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        for labels, read, predicts in self.read:
            if ids is labels:
                self.passes += 1
                hidden = self.hidden(model, read, *args, **options)
                return torch.where(predicts[..., None], hidden, torch.randn(hidden.shape).to(hidden))
        return self.hidden(model, ids, *args, **options)


@pytest.mark.parametrize("kind", AGENTS)
def test_permuted_labels_of_others_do_not_move_a_loss(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> tuple[list[dict[str, Any]], Any]:
        agent = talker(kind, letters_talk(min_new_tokens=1), **AGENTS[kind])
        return learn(agent, 1), weights(agent)

    rows, plain = trained()
    foreign = ForeignLabels(monkeypatch)
    moved, permuted = trained()
    assert foreign.permuted > 100
    assert foreign.passes > 1
    assert_same_weights(plain, permuted)  # bit for bit
    losses = [name for name in rows[-1] if name.startswith(("loss/", "train/", "objective/"))]
    assert losses
    assert [rows[-1][name] for name in losses] == pytest.approx(
        [moved[-1][name] for name in losses], abs=0, nan_ok=True
    )
