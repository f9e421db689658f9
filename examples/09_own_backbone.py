"""A sequence model of your own behind an agent: register it, check the contract, train it like any other.

Without --data a GRU is checked and lives an episode untrained (seconds); with a folder of learning histories it is
distilled (icrl-agents collect reacher-goal makes one). A loop over steps trains slowly: write a scan.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from icrl_agents import AgentConfig, InContextAgent, InContextModel, ModelConfig, register_backbone
from icrl_agents.backbones import Backbone, make_backbone
from icrl_agents.testing import check_backbone


@dataclass(frozen=True)
class GRUConfig:
    d_model: int = 64


class GRU(Backbone):
    def __init__(self, config: GRUConfig) -> None:
        super().__init__()
        self.d_model = config.d_model
        self.cell = nn.GRUCell(config.d_model, config.d_model)

    def initial_carry(self, batch_size, *, device=None, dtype=None):
        like = self.cell.weight_hh
        return torch.zeros(batch_size, self.d_model, device=device or like.device, dtype=dtype or like.dtype)

    def forward(self, x, carry=None, forget_before=None):
        carry = self.initial_carry(len(x)) if carry is None else carry
        outputs = [x[:, :0]]  # a sequence may be empty
        for t in range(x.shape[1]):
            if forget_before is not None:
                carry = self.forget(carry, forget_before[:, t])
            carry = self.cell(x[:, t], carry)
            outputs.append(carry[:, None])
        return torch.cat(outputs, dim=1), carry

    def step(self, x, carry):
        carry = self.cell(x, carry)
        return carry, carry

    def forget(self, carry, mask):
        return carry.masked_fill(mask[:, None], 0.0)


ENV_ID = "icrl/ReacherGoal-v0"
register_backbone("gru", f"{__name__}:GRU", f"{__name__}:GRUConfig")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="learning histories to distil")
    parser.add_argument("--out", type=Path, default=Path("runs/gru"))
    parser.add_argument("--updates", type=int, default=100)
    arguments = parser.parse_args()

    check_backbone(make_backbone("gru", {"d_model": 16}))
    print("it keeps the contract")
    if arguments.data is not None:
        from icrl_agents.training.distillation import DistillationConfig, train

        config = DistillationConfig("gru", ENV_ID, "gru", target="source_mean", updates=arguments.updates)
        agent = InContextAgent.from_pretrained(train(config, arguments.data, arguments.out).directory)
    else:
        model, low, high = ModelConfig(8, 2, "gru"), (-1.0, -1.0), (1.0, 1.0)
        config = AgentConfig("gru", ENV_ID, low, high, 50, 40, "paper", "", "", model)
        agent = InContextAgent(InContextModel(model), config)
    observation, _ = (env := agent.make_env()).reset(seed=0)
    total, truncated = 0.0, False
    while not truncated:  # this environment never terminates
        observation, reward, terminated, truncated, _ = env.step(agent.act(observation))
        agent.observe(reward, terminated, truncated)
        total += reward
    print(f"an episode of a GRU returns {total:.2f}")
