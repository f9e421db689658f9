"""The model: parallel and step by step are one function, for every tokenisation and head."""

import numpy as np
import pytest
import torch

from icrl_agents.model import LOG_STD_RANGE, InContextModel

SHAPES = [
    ("mamba", "transition", "deterministic"),
    ("mamba", "element", "gaussian"),
    ("mamba", "transition", "mixture"),
    ("transformer", "element", "mixture"),
    ("transformer", "transition", "gaussian"),
    ("transformer", "element", "deterministic"),
]


@pytest.fixture(params=SHAPES, ids="-".join)
def model(request, make_agent):
    backbone, tokenization, head = request.param
    return make_agent(backbone, tokenization=tokenization, head=head).model


def tokens_of(model, *lead, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(*lead, model.layout.size)).astype(np.float32))


def stepped(model, tokens, forget_before):
    carry = model.backbone.initial_carry(len(tokens))
    means = []
    for t in range(tokens.shape[1]):
        carry = model.backbone.forget(carry, forget_before[:, t])
        prediction, carry = model.step(tokens[:, t], carry)
        means.append(prediction.mean)
    return torch.stack(means, 1)


@torch.no_grad()
def test_forward_equals_repeated_step_across_forgets(model):
    tokens = tokens_of(model, 3, 20)
    forget_before = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)) < 0.15
    prediction, _ = model(tokens, forget_before=forget_before)
    torch.testing.assert_close(prediction.mean, stepped(model, tokens, forget_before), rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_forward_continues_where_it_stopped(model):
    tokens = tokens_of(model, 2, 15)
    whole, _ = model(tokens)
    first, carry = model(tokens[:, :6])
    second, _ = model(tokens[:, 6:], carry)
    torch.testing.assert_close(torch.cat([first.mean, second.mean], 1), whole.mean, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_every_part_of_the_past_matters_and_nothing_of_the_future(model):
    tokens, at = tokens_of(model, 1, 8), model.layout
    reference = model(tokens)[0].mean
    for part in (at.observation, at.previous_action, at.previous_reward, at.episode_start):
        changed = tokens.clone()
        changed[0, 4, part] += 1.0
        difference = (model(changed)[0].mean - reference).abs().amax(-1)[0]
        assert (difference[:4] == 0).all()
        assert (difference[4:] > 1e-6).all()


@torch.no_grad()
def test_the_reward_masked_control_never_sees_a_reward(make_agent):
    for tokenization in ("transition", "element"):
        model = make_agent(tokenization=tokenization, mask_rewards=True).model
        tokens = tokens_of(model, 2, 10)
        other = tokens.clone()
        other[..., model.layout.previous_reward] = 7.0
        assert torch.equal(model(tokens)[0].mean, model(other)[0].mean)


@torch.no_grad()
def test_normalisation_is_part_of_the_weights(make_agent):
    plain, scaled = make_agent().model, make_agent().model
    mean, std = torch.arange(20.0), torch.arange(1.0, 21.0)
    scaled.token_mean.copy_(mean)
    scaled.token_std.copy_(std)
    assert {"token_mean", "token_std"} <= set(scaled.state_dict())
    tokens = tokens_of(plain, 2, 5)
    torch.testing.assert_close(scaled(tokens * std + mean)[0].mean, plain(tokens)[0].mean, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_wild_tokens_give_finite_actions(model):
    prediction, carry = model.step(torch.full((1, 20), 3e38), model.backbone.initial_carry(1))
    assert torch.isfinite(prediction.mean).all()
    prediction, _ = model.step(torch.zeros(1, 20), carry)
    assert torch.isfinite(prediction.mean).all()


@torch.no_grad()
def test_the_gaussian_heads_deviation_is_bounded(make_agent):
    model = make_agent(head="gaussian").model
    prediction, _ = model(tokens_of(model, 2, 50) * 100)
    assert prediction.mean.shape == prediction.log_std.shape == (2, 50, 2)
    assert prediction.log_std.min() >= LOG_STD_RANGE[0]
    assert prediction.log_std.max() <= LOG_STD_RANGE[1]
    assert make_agent().model(tokens_of(model, 1, 1))[0].log_std is None


def test_input_noise_changes_what_is_seen_and_only_if_asked(make_agent):
    model = make_agent().model
    tokens = tokens_of(model, 2, 5)
    clean = model(tokens)[0].mean
    assert torch.equal(model(tokens)[0].mean, clean)
    noisy = model(tokens, input_noise=0.1 * torch.randn_like(tokens))[0].mean
    assert 1e-4 < (noisy - clean).abs().max() < 1.0


def test_gradients_reach_every_weight(make_agent):
    for tokenization in ("transition", "element"):
        model = make_agent(tokenization=tokenization).model
        model(tokens_of(model, 2, 12))[0].mean.square().sum().backward()
        for name, weight in model.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.abs().sum() > 0, name


def test_a_linear_head(make_config):
    from dataclasses import replace

    model = InContextModel(replace(make_config().model, head_hidden=0))
    assert isinstance(model.head, torch.nn.Linear)
    assert model.head.out_features == 2
