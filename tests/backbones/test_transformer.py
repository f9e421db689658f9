"""The banded decoder: the band is exact, positions are what they are called, nothing grows."""

import pytest
import torch
import torch.nn.functional as F

from icrl_agents.backbones import carry_bytes
from icrl_agents.backbones.transformer import (
    Transformer,
    TransformerConfig,
    Turn,
    attend,
    make_band,
    positions_since_forget,
    rotate,
)
from icrl_agents.errors import ConfigError, ContextOverrunError


def seen(band, past, length):
    """The band as one ``[B, L, P + L]`` matrix of 0 and 1."""
    rows = []
    begins = [0, *torch.tensor(band.chunks).cumsum(0).tolist()]
    for size, (first, last), mask in zip(band.queries, band.spans, band.masks, strict=True):
        mask = mask.reshape(-1, size, mask.shape[-1])
        row = torch.zeros(mask.shape[0], size, past + length, dtype=torch.bool)
        row[:, :, begins[first] : begins[last]] = mask
        rows.append(row)
    return torch.cat(rows, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rotary_positions_are_not_rounded_with_the_weights(dtype):
    config = TransformerConfig(d_model=16, n_layers=1, n_heads=2, d_ff=16, context_length=8)
    backbone = Transformer(config)
    exact = backbone.frequencies.clone()
    x, at = torch.zeros(1, 1, 16, dtype=dtype), torch.tensor([[123_457]])
    _, turn = backbone.to(dtype)._place(x, at)
    assert torch.equal(backbone.frequencies, exact)
    angles = at.double()[..., None, None, None] * exact.double()
    torch.testing.assert_close(turn.cos, angles.cos().to(dtype), rtol=0, atol=max(1e-10, torch.finfo(dtype).eps))
    torch.testing.assert_close(turn.sin, angles.sin().to(dtype), rtol=0, atol=max(1e-10, torch.finfo(dtype).eps))
    assert torch.equal(backbone.float().frequencies, exact)


@pytest.mark.parametrize(
    ("past", "length", "width", "block"), [(0, 9, 4, 2), (0, 9, 4, 3), (3, 10, 4, 4), (2, 5, 9, 2)]
)
def test_the_band_by_definition(past, length, width, block):
    start = torch.tensor([past, 1])
    forget = torch.zeros(2, length, dtype=torch.bool)
    forget[1, 3] = True
    positions = positions_since_forget(start, forget, length)
    band = seen(make_band(past, length, width, positions, torch.device("cpu"), block), past, length)
    for row in range(2):
        for i in range(length):
            for j in range(past + length):
                back = past + i - j
                expected = 0 <= back < width and back <= positions[row, i]
                assert band[row, i, j] == expected, (row, i, j)


def test_positions_count_from_the_last_forget():
    forget = torch.tensor([[False, False, True, False], [True, False, False, True]])
    expected = [[5, 6, 0, 1], [0, 1, 2, 0]]
    assert positions_since_forget(torch.tensor([5, 7]), forget, 4).tolist() == expected
    assert positions_since_forget(torch.tensor([5, 7]), None, 2).tolist() == [[5, 6], [7, 8]]


def test_blockwise_attention_is_masked_attention():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 23, 4, generator=generator) for _ in range(3))
    distance = torch.arange(23).unsqueeze(1) - torch.arange(23)
    mask = (distance >= 0) & (distance < 6)
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    band = make_band(0, 23, 6, None, torch.device("cpu"), block=5)
    torch.testing.assert_close(attend(q, k, v, band), expected)
    assert max(last - first for first, last in band.spans) == 2  # 5 queries and the 5 keys before them


def test_rotation_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 1, 4).expand(1, 1, 2, 1, 4)
    angles = torch.tensor([torch.pi / 2, torch.pi]).view(1, 1, 1, 1, 2)
    turned = torch.tensor([-3.0, -2.0, 1.0, -4.0])  # (1, 3) by 90 degrees, (2, 4) by 180
    torch.testing.assert_close(rotate(x, Turn(angles.cos(), angles.sin()))[0, 0, 0, 0], turned)


@torch.no_grad()
def test_a_rotary_window_sees_only_its_content():
    """Far from the start, an output depends on the band alone, wherever it lies."""
    torch.manual_seed(0)
    transformer = Transformer(TransformerConfig(d_model=8, n_layers=1, n_heads=2, d_ff=16, context_length=4))
    window = torch.randn(1, 4, 8)
    far = torch.cat([torch.randn(1, 700, 8), window], 1)
    torch.testing.assert_close(transformer(far)[0][:, -1], transformer(window)[0][:, -1], rtol=1e-4, atol=1e-5)
    carry = transformer.initial_carry(1)._replace(positions=torch.tensor([10_000_000]))
    for t in range(4):
        y, carry = transformer.step(window[:, t], carry)
    torch.testing.assert_close(y, transformer(window)[0][:, -1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_absolute_positions_overrun():
    options = {
        "d_model": 8,
        "n_layers": 1,
        "n_heads": 2,
        "d_ff": 16,
        "position": "absolute",
        "max_positions": 5,
    }
    transformer = Transformer(TransformerConfig(**options))
    x = torch.randn(2, 5, 8)
    _, carry = transformer(x)
    kept = carry.keys[0].clone()
    with pytest.raises(ContextOverrunError, match="5 absolute positions"):
        transformer.step(x[:, 0], carry)
    assert torch.equal(carry.keys[0], kept)
    with pytest.raises(ContextOverrunError):
        transformer(x, carry)
    with pytest.raises(ContextOverrunError):
        transformer(torch.randn(1, 6, 8))
    carry = transformer.forget(carry, torch.tensor([True, True]))
    torch.testing.assert_close(transformer.step(x[:, 0], carry)[0], transformer(x)[0][:, 0])
    forget = torch.tensor([[False] * 4 + [True] + [False] * 4])
    transformer(torch.randn(1, 9, 8), None, forget)  # 4 and 5 positions


@torch.no_grad()
def test_memory_is_constant():
    transformer = Transformer(TransformerConfig(d_model=8, n_layers=2, n_heads=2, d_ff=16, context_length=3))
    carry = transformer.initial_carry(2)
    size = carry_bytes(carry)
    assert size == 2 * 8 + 2 * 2 * (2 * 3 * 8) * 4  # positions; layers x (keys, values) x B W D x float32
    for _ in range(7):
        _, carry = transformer.step(torch.randn(2, 8), carry)
        assert carry_bytes(carry) == size
    _, carry = transformer(torch.randn(2, 50, 8), carry)
    assert carry_bytes(carry) == size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 10, "n_heads": 4}, "does not divide"),
        ({"d_model": 12, "n_heads": 4}, "even width"),
        ({"context_length": 0}, "context_length"),
    ],
)
def test_shapes_without_meaning_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TransformerConfig(**options)
