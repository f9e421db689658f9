"""The contract of a backbone as a function to call from your own tests."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from icrl_agents.backbones import Backbone, Carry, clone_carry
from icrl_agents.testing.requirement import require

PROBE_STEPS = 8
"""Steps that two carries are followed for, to see that they remember the same."""


@torch.no_grad()
def check_backbone(
    backbone: Backbone,
    *,
    batch: int = 3,
    length: int = 40,
    forgetting: float = 0.1,
    cuts: Sequence[int] = (1, 17, 17, 30),
    seed: int = 0,
    tolerance: float = 1e-5,
) -> None:
    """Require the contract of :class:`~icrl_agents.backbones.Backbone`, on random inputs.

    - ``forward`` gives what repeated ``forget`` and ``step`` give, outputs and carry, with and without
      ``forget_before``; so does ``forward`` over chunks, empty ones too.
    - Rows that began at different times do what each would do alone.
    - Outputs depend on nothing later, and on nothing before a forget.
    - ``forget`` makes masked rows begin anew and touches no other row.
    - Each leaf of a carry has the batch first; ``forward`` leaves the carry it was given as it was.

    Weights should be such that outputs depend visibly on what is remembered, or little is tested.

    Args:
        backbone: to check; what it computes in float32 on the device of its weights, or in their dtype.
        batch: rows, at least 2.
        length: steps of a sequence, at least 2; with ``PROBE_STEPS`` more it must fit into the backbone.
        forgetting: probability that a new task starts at a step.
        cuts: where chunks end, at most ``length``; in any order.
        seed: of the inputs.
        tolerance: largest allowed error over the largest output.

    Raises:
        AssertionError: says what does not hold.
        ValueError: arguments under which nothing could be checked.
    """
    if batch < 2 or length < 2:
        raise ValueError(f"batch and length are at least 2, got {batch} and {length}")
    was_training = backbone.training
    backbone.eval()  # dropout would make every comparison fail
    try:
        check = _Check(backbone, batch, length, forgetting, seed, tolerance)
        check.layout_of_carry()
        check.forward_is_repeated_step()
        check.chunks_are_one_forward(cuts)
        check.rows_keep_their_own_time()
        check.nothing_later_matters()
        check.nothing_before_a_forget_matters()
        check.forget_touches_only_masked_rows()
        check.forward_leaves_its_carry()
    finally:
        backbone.train(was_training)


class _Check:
    """One backbone and inputs for it.

    Attributes:
        x: ``[B, L, D]``.
        forget: ``[B, L]`` bool, somewhere.
        nowhere: ``[B, L]`` False.
        probe: what follows, to compare two carries by ``[B, PROBE_STEPS, D]``.
    """

    def __init__(
        self, backbone: Backbone, batch: int, length: int, forgetting: float, seed: int, tolerance: float
    ) -> None:
        self.backbone, self.tolerance = backbone, tolerance
        self.batch, self.length = batch, length
        weight = next(backbone.parameters())
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, length + PROBE_STEPS, backbone.d_model)
        inputs = torch.randn(shape, generator=generator).to(weight)  # [B, L + PROBE_STEPS, D]
        self.x, self.probe = inputs.split([length, PROBE_STEPS], 1)
        self.forget = (torch.rand(batch, length, generator=generator) < forgetting).to(weight.device)
        self.nowhere = torch.zeros_like(self.forget)
        self.generator = generator

    def layout_of_carry(self) -> None:
        try:
            nowhere = self.backbone.initial_carry(self.batch, device="meta")
        except TypeError as error:
            raise AssertionError(f"initial_carry takes (batch_size, *, device=None, dtype=None): {error}") from error
        carries = {"initial_carry": self.backbone.initial_carry(self.batch), "forward": self.backbone(self.x)[1]}
        for source, carry in carries.items():
            for leaf in pytree.tree_leaves(carry):
                shape = list(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
                good = isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == self.batch
                require(good, f"every leaf of {source}'s carry is a tensor [batch, ...]; one is {shape}")
        kinds = {leaf.device.type for leaf in pytree.tree_leaves(nowhere)}
        require(kinds <= {"meta"}, f"initial_carry(..., device='meta') is on {', '.join(sorted(kinds))}")

    def forward_is_repeated_step(self) -> None:
        for forget, where in ((self.nowhere, ""), (self.forget, " across forget_before")):
            expected, carry_of_steps = self.stepped(self.x, forget)
            y, carry = self.backbone(self.x, None, forget)
            self.same(y, expected, f"forward is not repeated step{where}")
            self.same_future(carry, carry_of_steps, f"the carry of forward is not that of repeated step{where}")
        y, carry = self.backbone(self.x)
        expected, carry_of_steps = self.stepped(self.x, self.nowhere)
        self.same(y, expected, "forward without forget_before is not repeated step")
        self.same_future(carry, carry_of_steps, "the carry of forward without forget_before is not that of steps")
        first, _ = self.backbone(self.x, self.backbone.initial_carry(self.batch))
        self.same(first, y, "forward from initial_carry is not forward without a carry")

    def chunks_are_one_forward(self, cuts: Sequence[int]) -> None:
        for forget in (None, self.forget):
            whole, carry_of_whole = self.backbone(self.x, None, forget)
            carry, outputs = None, []
            for start, stop in pairwise([0, *sorted(min(cut, self.length) for cut in cuts), self.length]):
                part = None if forget is None else forget[:, start:stop]
                y, carry = self.backbone(self.x[:, start:stop], carry, part)
                outputs.append(y)
            self.same(torch.cat(outputs, 1), whole, "forward over chunks is not one forward")
            self.same_future(carry, carry_of_whole, "the carry after chunks is not that of one forward")

    def rows_keep_their_own_time(self) -> None:
        """Row i forgets at its own time; from then on it is a sequence of its own."""
        starts = torch.randint(self.length, (self.batch,), generator=self.generator).tolist()
        starts[0], starts[1] = 0, max(1, starts[1])  # one from the start, one later
        forget = self.nowhere.clone()
        for row, start in enumerate(starts):
            forget[row, start] = True
        together, carry_of_steps = self.stepped(self.x, forget)
        prefilled, carry = self.backbone(self.x, None, forget)
        for row, start in enumerate(starts):
            alone, _ = self.backbone(self.x[row : row + 1, start:])
            message = f"a row that began at step {start}, beside others, is not the sequence it would be alone"
            self.same(together[row : row + 1, start:], alone, f"step: {message}")
            self.same(prefilled[row : row + 1, start:], alone, f"forward: {message}")
        self.same_future(carry, carry_of_steps, "the carry of forward is not that of step for rows at different times")

    def nothing_later_matters(self) -> None:
        split = self.length // 2
        other = self.x.clone()
        other[:, split:] += 10.0  # unlike any input before: what leaks only then leaks too
        for forget in (None, self.forget):
            y, changed = self.backbone(self.x, None, forget)[0], self.backbone(other, None, forget)[0]
            self.same(changed[:, :split], y[:, :split], "an input changes outputs before it: not causal")
            require(not torch.equal(changed[:, split], y[:, split]), "an output does not depend on its input")

    def nothing_before_a_forget_matters(self) -> None:
        split = self.length // 2
        other, forget = self.x.clone(), self.nowhere.clone()
        other[:, :split] += 1.0
        forget[:, split] = True
        y, changed = self.backbone(self.x, None, forget)[0], self.backbone(other, None, forget)[0]
        self.same(changed[:, split:], y[:, split:], "forward: an input before forget_before is remembered")

    def forget_touches_only_masked_rows(self) -> None:
        _, carry = self.stepped(self.x, self.nowhere)
        mask = torch.arange(self.batch, device=self.x.device) == self.batch // 2
        forgotten = self.backbone.forget(clone_carry(carry), mask)
        for before, after in zip(pytree.tree_leaves(carry), pytree.tree_leaves(forgotten), strict=True):
            require(torch.equal(before[~mask], after[~mask]), "forget changes the carry of rows that are not masked")
        nowhere = self.nowhere.new_zeros(self.batch, PROBE_STEPS)
        y, _ = self.stepped(self.probe, nowhere, forgotten)
        fresh, _ = self.stepped(self.probe, nowhere)
        self.same(y[mask], fresh[mask], "forget: a masked row does not begin anew")
        kept, _ = self.stepped(self.probe, nowhere, carry)
        self.same(y[~mask], kept[~mask], "forget changes what rows that are not masked do")

    def forward_leaves_its_carry(self) -> None:
        _, carry = self.backbone(self.x, None, self.forget)
        kept = clone_carry(carry)
        _, later = self.backbone(self.probe, carry)
        for t in range(PROBE_STEPS):  # may reuse the memory of later, which must not be that of carry
            _, later = self.backbone.step(self.probe[:, t], later)
        _, later = self.backbone(self.probe[:, :0], carry)  # no step forward is one
        self.backbone.step(self.probe[:, 0], later)
        for before, after in zip(pytree.tree_leaves(kept), pytree.tree_leaves(carry), strict=True):
            require(torch.equal(before, after), "forward, or a step after it, changes the carry it was given")

    def stepped(self, x: Tensor, forget: Tensor, carry: Carry | None = None) -> tuple[Tensor, Carry]:
        """Outputs ``[B, L, D]`` of one step after the other, and the last carry."""
        carry = self.backbone.initial_carry(len(x)) if carry is None else clone_carry(carry)
        outputs = []
        for t in range(x.shape[1]):
            carry = self.backbone.forget(carry, forget[:, t])
            y, carry = self.backbone.step(x[:, t], carry)
            outputs.append(y)
        return torch.stack(outputs, 1), carry

    def same_future(self, a: Carry, b: Carry, message: str) -> None:
        """Everything that follows two carries is the same."""
        nowhere = self.nowhere.new_zeros(self.batch, PROBE_STEPS)
        self.same(self.stepped(self.probe, nowhere, a)[0], self.stepped(self.probe, nowhere, b)[0], message)
        self.same(self.backbone(self.probe, a)[0], self.backbone(self.probe, b)[0], message)

    def same(self, found: Tensor, expected: Tensor, message: str) -> None:
        require(found.shape == expected.shape, f"{message}: shape {list(found.shape)}, not {list(expected.shape)}")
        error = (found - expected).abs().max().item()
        largest = expected.abs().max().item()
        good = error <= self.tolerance * largest  # False for NaN
        require(good, f"{message}: they differ by {error:.3g} where outputs are up to {largest:.3g}")
