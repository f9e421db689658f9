"""What bundled agents do when they are given a fixed stream of observations and rewards.

``python tests/shared/golden_actions.py NAME ...`` writes them anew, for agents that were replaced on purpose.
"""

import json
import sys
from pathlib import Path

import numpy as np

from icrl_agents import InContextAgent

GOLDEN_FILE = Path(__file__).parents[1] / "golden_actions.json"
STEPS, EPISODE, KEPT = 60, 25, 3


def actions_of(name: str) -> np.ndarray:
    """Its last ``KEPT`` of ``STEPS`` actions ``[KEPT, A]``, in the third episode."""
    agent = InContextAgent.from_pretrained(name, device="cpu")
    random = np.random.default_rng(0)
    agent.reset(seed=0)
    actions = []
    for step in range(STEPS):
        actions.append(agent.act(0.3 * random.standard_normal(agent.config.model.observation_dim)))
        agent.observe(float(random.uniform(-1, 0)), False, (step + 1) % EPISODE == 0)
    return np.asarray(actions[-KEPT:], np.float64)


if __name__ == "__main__":
    golden = json.loads(GOLDEN_FILE.read_text(encoding="utf-8")) if GOLDEN_FILE.is_file() else {}
    golden |= {name: actions_of(name).round(6).tolist() for name in sys.argv[1:]}
    GOLDEN_FILE.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n", encoding="utf-8")
