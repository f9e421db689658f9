"""The contract of a backbone refuses what breaks it, and says what does not hold."""

import pytest
import torch

from icrl_agents.backbones import Backbone
from icrl_agents.testing import check_backbone


class RunningSum(Backbone):
    """The simplest backbone that remembers: a leaky sum of its inputs, and how many there were."""

    d_model = 4

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def initial_carry(self, batch_size, *, device=None, dtype=None):
        zeros = torch.zeros(batch_size, self.d_model, device=device, dtype=dtype or self.weight.dtype)
        return {"sum": zeros, "count": torch.zeros(batch_size, dtype=torch.int64, device=device)}

    def forward(self, x, carry=None, forget_before=None):
        carry = self.initial_carry(len(x), dtype=x.dtype) if carry is None else carry
        outputs = []
        for t in range(x.shape[1]):
            if forget_before is not None:
                carry = RunningSum.forget(self, carry, forget_before[:, t])
            y, carry = RunningSum.step(self, x[:, t], carry)
            outputs.append(y)
        return (torch.stack(outputs, 1) if outputs else x), carry

    def step(self, x, carry):
        after = {"sum": self.weight * carry["sum"] + x, "count": carry["count"] + 1}
        return after["sum"] / after["count"].unsqueeze(1), after

    def forget(self, carry, mask):
        return {
            "sum": carry["sum"].masked_fill(mask.unsqueeze(1), 0.0),
            "count": carry["count"].masked_fill(mask, 0),
        }


class CarryKnowsNoDevice(RunningSum):
    def initial_carry(self, batch_size):
        return super().initial_carry(batch_size)


class StepDiffers(RunningSum):
    def step(self, x, carry):
        y, carry = super().step(x, carry)
        return y * 1.001, carry


class ForwardIgnoresForgets(RunningSum):
    def forward(self, x, carry=None, forget_before=None):
        return super().forward(x, carry)


class ForwardDropsItsCarry(RunningSum):
    """Right outputs, wrong memory."""

    def forward(self, x, carry=None, forget_before=None):
        y, after = super().forward(x, carry, forget_before)
        return y, {"sum": 0.5 * after["sum"], "count": after["count"]}


class ChunksBeginAnew(RunningSum):
    def forward(self, x, carry=None, forget_before=None):
        y, after = super().forward(x, carry, forget_before)
        if carry is not None and x.shape[1] > 8 and carry["count"].any():
            y, _ = super().forward(x, None, forget_before)
        return y, after


class RowsShareTheirTime(RunningSum):
    """Each row's count is the longest one's, in forward and step alike."""

    def forward(self, x, carry=None, forget_before=None):
        carry = self.initial_carry(len(x)) if carry is None else carry
        outputs = []
        for t in range(x.shape[1]):
            if forget_before is not None:
                carry = self.forget(carry, forget_before[:, t])
            y, carry = self.step(x[:, t], carry)
            outputs.append(y)
        return (torch.stack(outputs, 1) if outputs else x), carry

    def step(self, x, carry):
        return super().step(x, carry | {"count": carry["count"].max().expand(len(x)).clone()})


class SeesTheFuture(RunningSum):
    """Where inputs are unusually large; on others forward is repeated step."""

    def forward(self, x, carry=None, forget_before=None):
        y, after = super().forward(x, carry, forget_before)
        return y + torch.relu(x.abs() - 6).flip(1).cumsum(1).flip(1), after


class ForgetsEveryRow(RunningSum):
    """Where any row is masked, all forget."""

    def forget(self, carry, mask):
        return super().forget(carry, mask.any().expand(len(mask)))


class ForgetsHalf(RunningSum):
    """The count stays."""

    def forget(self, carry, mask):
        return super().forget(carry, mask) | {"count": carry["count"]}


class WritesIntoItsCarry(RunningSum):
    def forward(self, x, carry=None, forget_before=None):
        y, after = super().forward(x, carry, forget_before)
        if carry is not None:
            carry["sum"].copy_(after["sum"])
        return y, after


class ScalarCarry(RunningSum):
    def initial_carry(self, batch_size, *, device=None, dtype=None):
        return super().initial_carry(batch_size, device=device, dtype=dtype) | {"total": torch.zeros(())}


class NotANumber(RunningSum):
    def forward(self, x, carry=None, forget_before=None):
        y, after = super().forward(x, carry, forget_before)
        return y * torch.nan, after


class Deaf(RunningSum):
    def forward(self, x, carry=None, forget_before=None):
        return torch.ones_like(x), self.initial_carry(len(x)) if carry is None else carry

    def step(self, x, carry):
        return torch.ones_like(x), carry


def test_a_backbone_that_meets_the_contract_passes_and_is_left_as_it_was():
    for mode in (True, False):
        backbone = RunningSum().train(mode)
        check_backbone(backbone)
        assert backbone.training is mode
    check_backbone(RunningSum().double(), batch=2, length=2, forgetting=0.5, cuts=(), tolerance=1e-12)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (CarryKnowsNoDevice, "initial_carry takes"),
        (StepDiffers, "^forward is not repeated step: they differ by"),
        (ForwardIgnoresForgets, "forward is not repeated step across forget_before"),
        (ForwardDropsItsCarry, "the carry of forward is not that of repeated step"),
        (ChunksBeginAnew, "forward over chunks is not one forward"),
        (RowsShareTheirTime, "a row that began at step .* is not the sequence it would be alone"),
        (SeesTheFuture, "not causal"),
        (ForgetsEveryRow, "across forget_before"),
        (ForgetsHalf, "across forget_before"),
        (WritesIntoItsCarry, "changes the carry"),
        (ScalarCarry, r"every leaf of initial_carry's carry is a tensor \[batch, ...\]; one is \[\]"),
        (NotANumber, "differ by nan"),
        (Deaf, "does not depend on its input"),
    ],
)
def test_each_breach_is_named(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_backbone(broken())


def test_forget_is_checked_apart_from_forward():
    """Forward and step forget alike, and wrongly."""

    class Alike(RowsShareTheirTime):
        def step(self, x, carry):
            return RunningSum.step(self, x, carry)

    class EveryRow(Alike, ForgetsEveryRow):
        pass

    class NoRow(Alike):
        def forget(self, carry, mask):
            return carry

    with pytest.raises(AssertionError, match="alone"):
        check_backbone(EveryRow(), forgetting=0.0)
    with pytest.raises(AssertionError, match="alone"):
        check_backbone(NoRow(), forgetting=0.0)


@pytest.mark.parametrize("sizes", [{"batch": 1}, {"length": 1}])
def test_sizes_at_which_nothing_is_checked_are_refused(sizes):
    with pytest.raises(ValueError, match="at least 2"):
        check_backbone(RunningSum(), **sizes)
