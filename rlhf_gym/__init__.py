"""rlhf-gym: reinforcement learning from human feedback as a first-class Gymnasium problem.

Importing the package registers its environments with Gymnasium (``gym.make("rlhf_gym/Sentiment-v0")``) and loads nothing
heavy.
"""

from pathlib import Path

_HERE = Path(__file__).parent
if not (_HERE / "envs" / "__init__.py").exists():
    # A checkout or an editable install: `envs/` and `agents/` stand beside this folder, and install inside it. A longer path,
    # not two modules loaded here by hand: subpackages, pickles, spawned processes and reloads find them as any others.
    __path__.append(str(_HERE.parent))

from rlhf_gym.envs.registration import register_all  # noqa: E402
from rlhf_gym.version import __version__  # noqa: E402

register_all()

__all__ = ["__version__"]
