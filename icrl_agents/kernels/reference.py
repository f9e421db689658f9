"""The S6 scan, step and convolution as plain PyTorch: readable, differentiable, any real dtype, any device.

What the paper calls them (Mamba, arXiv 2312.00752):

    B  batch                        u      x_t, input of the scan          [B, L, E]
    L  length                       delta  Delta, step size                [B, L, E]
    E  channels (inner width)       A      state matrix, diagonal, <= 0    [E, N]
    N  states a channel             B, C   input and output matrices       [B, L, N]
    K  width of the convolution     D      skip                            [E]
                                    z      gate                            [B, L, E]

The state lies as ``[B, N, E]``: channels last, as everywhere in this package.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    forget_before: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """:func:`icrl_agents.kernels.selective_scan`, one step after the other."""
    batch, length, channels = u.shape
    state = u.new_zeros(batch, A.shape[1], channels) if initial_state is None else initial_state  # [B, N, E]
    outputs = []
    for t in range(length):
        if forget_before is not None:
            state = state.masked_fill(forget_before[:, t, None, None], 0.0)
        gate = None if z is None else z[:, t]
        y, state = selective_step(u[:, t], delta[:, t], A, B[:, t], C[:, t], D, gate, delta_bias, delta_softplus, state)
        outputs.append(y)
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(u)), state


def selective_step(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """:func:`icrl_agents.kernels.selective_step`: eq. 2 with A_bar = exp(Delta A) and B_bar = Delta B.

    The paper's eq. 4 has the exact zero-order hold for B_bar; its first-order form is what the authors' code
    and weights use.
    """
    if delta_bias is not None:
        delta = delta + delta_bias
    if delta_softplus:
        delta = F.softplus(delta)  # [B, E]
    A_bar = torch.exp(delta.unsqueeze(1) * A.t())  # [B, N, E]
    state = torch.addcmul(A_bar * state, B.unsqueeze(2), (delta * u).unsqueeze(1))  # [B, N, E]
    y = torch.bmm(C.unsqueeze(1), state).squeeze(1)  # [B, E]
    if D is not None:
        y = torch.addcmul(y, D, u)  # [B, E]
    return (y if z is None else y * F.silu(z)), state


def conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, taps: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`icrl_agents.kernels.conv_step`."""
    window = torch.cat([taps, x.unsqueeze(1)], 1)  # [B, K, E]
    y = (window * weight.t()).sum(1)  # [B, E]
    return F.silu(y if bias is None else y + bias), window[:, 1:]


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_taps: Tensor | None, forget_before: Tensor | None
) -> Tensor:
    """:func:`icrl_agents.kernels.causal_conv` without the final taps: one shifted product a tap."""
    batch, length, channels = x.shape
    taps = weight.shape[1] - 1
    if initial_taps is None:
        initial_taps = x.new_zeros(batch, taps, channels)
    padded = torch.cat([initial_taps, x], 1)  # [B, K - 1 + L, E]
    reach = steps_since_forget(forget_before, taps, batch, length, x.device)  # [B, L]
    y = x * weight[:, -1]  # [B, L, E]
    for back in range(1, taps + 1):
        earlier = padded[:, taps - back : taps - back + length]  # [B, L, E], x at t - back
        seen = (reach >= back).unsqueeze(2)  # [B, L, 1]
        y = y + torch.where(seen, earlier, torch.zeros_like(earlier)) * weight[:, -1 - back]
    return F.silu(y if bias is None else y + bias)


def steps_since_forget(
    forget_before: Tensor | None, before: int, batch: int, length: int, device: torch.device
) -> Tensor:
    """How many earlier inputs each step may see ``[B, L]``, when ``before`` of them precede the sequence."""
    time = torch.arange(length, device=device).expand(batch, length)
    if forget_before is None:
        return time + before
    start = torch.where(forget_before, time, -before).cummax(1).values  # [B, L], where the present task started
    return time - start
