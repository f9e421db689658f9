"""Tables 1 to 4 of arXiv 2506.13892: the paper's source algorithms, and which environment got which.

The paper names Ant-Dir "Ant-goal". What it leaves open is marked where it is chosen.
"""

from collections.abc import Mapping
from typing import Any

from icrl_agents.training.sources.ppo import PPOConfig
from icrl_agents.training.sources.sac import DroQConfig, SACConfig

STREAMS = 5
"""Number of environments of a task, tables 1 to 3."""

PAPER_PPO = PPOConfig(
    n_steps=500,
    n_epochs=10,
    n_minibatches=39,  # batches of 64 out of 5 x 500 samples
    learning_rate=1e-4,
    anneal=False,
    gamma=0.99,
    gae_lambda=0.95,
    clip_range=0.2,
    ent_coef=5e-3,
    vf_coef=0.5,
    log_std_init=0.0,
)
"""Table 1."""

# Not in tables 2 and 3: tau, temperature and widths, which are those of the algorithms' papers. Their "gae lambda",
# "epsilon" and "value coeff" have no meaning for off-policy algorithms.

PAPER_SAC = SACConfig(
    buffer_size=1_000_000,
    learning_starts=400,
    batch_size=256,
    gradient_steps=STREAMS,  # not in the table: as many updates as environment steps
    learning_rate=1e-4,
    gamma=0.99,
)
"""Table 2."""

PAPER_DROQ = DroQConfig(
    buffer_size=1_000_000,
    learning_starts=400,
    batch_size=256,
    gradient_steps=3 * STREAMS,  # read as 3 for each environment step; DroQ has more than SAC
    policy_delay=3,
    learning_rate=1e-4,
    gamma=0.99,
)
"""Table 3."""


def sb3_options(config: SACConfig) -> dict[str, Any]:
    """An off-policy learner's hyper-parameters as stable-baselines3's SAC and sb3-contrib's algorithms name them."""
    names = ("buffer_size", "learning_starts", "batch_size", "gradient_steps", "learning_rate", "gamma")
    return {name: getattr(config, name) for name in names}


PAPER_SB3: Mapping[str, Mapping[str, Any]] = {
    "sb3-ppo": {
        "n_steps": 500,
        "n_epochs": 10,
        "batch_size": 64,
        "learning_rate": 1e-4,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "clip_range": 0.2,
        "ent_coef": 5e-3,
        "vf_coef": 0.5,
    },
    "sb3-sac": sb3_options(PAPER_SAC),
    "sb3-droq": {**sb3_options(PAPER_DROQ), "policy_delay": PAPER_DROQ.policy_delay},
    "sb3-tqc": sb3_options(PAPER_SAC),  # not in the paper: as its SAC
    "sb3-crossq": sb3_options(PAPER_SAC),  # not in the paper: as its SAC
}
"""Tables 1 to 3, as stable-baselines3 names them."""

PAPER_ALGORITHMS: Mapping[str, str] = {
    "icrl/ReacherGoal-v0": "sac",
    "icrl/PusherGoal-v0": "ppo",
    "icrl/HalfCheetahVel-v0": "sac",
    "icrl/AntDir-v0": "droq",
}
"""Table 4, the algorithm of each environment. Its numbers of training tasks are those of the split ``paper``."""

PAPER_STEPS_PER_TASK: Mapping[str, int] = {
    "icrl/ReacherGoal-v0": 100_000,
    "icrl/PusherGoal-v0": 500_000,
    "icrl/HalfCheetahVel-v0": 400_000,
    "icrl/AntDir-v0": 500_000,
}
"""Table 4, train steps per task."""
