"""The weight of the entropy bonus: fixed, or adapted to a wanted entropy (He et al. 2025)."""

from __future__ import annotations


class EntropyController:
    """The entropy coefficient, which with a target adapts once an iteration.

    With a target, the bonus of iteration ``k`` has the weight ``c_k`` where its entropy is at most the target, else 0; then
    ``c`` rises by ``step`` where the entropy was below the target, and falls by it, down to 0, where it was above
    (He et al. 2025, "Skywork Open Reasoner 1": adaptive entropy control).

    Args:
        coef: the coefficient, or its first value.
        target: wanted entropy, in nats per token; None keeps the coefficient fixed.
        step: the change per iteration.

    Attributes:
        coef: ``c``.
        bonus: the weight in this iteration.
    """

    def __init__(self, coef: float, target: float | None, step: float) -> None:
        self.coef, self.target, self.step = coef, target, step
        self.bonus = coef

    def begin(self, entropy: float) -> None:
        """Set the weight of an iteration from the entropy of its rollout, in nats per token."""
        if self.target is not None:
            self.bonus = self.coef if entropy <= self.target else 0.0
            self.coef = max(self.coef + (self.step if entropy < self.target else -self.step), 0.0)
