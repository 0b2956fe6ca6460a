"""How many more answers would raise a reward model's accuracy by a point, measured on the answers that there are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.loop.preference_data import PreferenceData
from rlhf_gym.loop.progress import Progress
from rlhf_gym.reward_model import Features, RewardModel
from rlhf_gym.reward_model.batches import texts_of
from rlhf_gym.reward_model.label_curve import LabelCurve, label_curve
from rlhf_gym.reward_model.readout import Readout


def more_labels(
    data: PreferenceData,
    model: LanguageModel,
    *,
    features: Features | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LabelCurve:
    """Measure and extrapolate accuracy by number of labels, of heads on a frozen trunk.

    Args:
        data: the judgements.
        model: whose trunk is read; it is not changed.
        features: of a reward model with this frozen trunk, where there are some: texts in there are not read again.
        seed: of splits and resamples.
        progress: shows the user what goes on; None shows nothing.

    Raises:
        FeedbackError: too few prompts, or no judgement that prefers one response to another.
    """
    progress = progress or Progress(quiet=True)
    preferences = data.preferences()
    texts = texts_of(preferences)
    if features is None:
        features = Features(RewardModel(model, readout=Readout(None, "response"), seed=seed))
    with progress.stage("accuracy by labels", 0) as bar:
        rows = features.rows(texts, lambda done, total: bar.update(done, "texts read by the frozen trunk", total))
        _, std = features.spread(rows)
        place = dict(zip(texts, rows, strict=True))

        def read(wanted: Sequence[tuple[str, str]]) -> Tensor:
            return features[[place[text] for text in wanted]].cpu() / std.cpu()

        answers = len({(p.query_id, p.rater) for p in preferences})
        return label_curve(
            preferences, read, n_answers=answers, seed=seed,
            on_progress=lambda done, total: bar.update(done, "heads", total),
        )  # fmt: skip
