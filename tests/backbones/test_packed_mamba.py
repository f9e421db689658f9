"""One compiled call a step: the stack in float64, whatever its shape, its threads and what became of its weights."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

import icrl_agents.backbones.packed_mamba as packed_mamba
from icrl_agents.backbones import clone_carry
from icrl_agents.backbones.mamba import Mamba, MambaConfig, _warn_of_inference_weights
from icrl_agents.backbones.packed_mamba import PackedMamba
from icrl_agents.errors import ConfigError, InputError

TOLERANCE = 1e-5
SMALL = MambaConfig(d_model=24, n_layers=2, d_state=5)


def lively(config, seed=0):
    """A stack whose outputs depend visibly on what it remembers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Mamba(config).eval()
        with torch.no_grad():
            for layer in backbone.layers:
                layer.mixer.dt_proj.bias.add_(1.0)
                layer.mixer.x_proj.weight.mul_(4.0)
                layer.norm.weight.uniform_(0.5, 1.5)
    return backbone


def random_carry(backbone, batch, generator):
    carry = backbone.initial_carry(batch)
    for block in carry:
        for leaf in block:
            leaf.normal_(generator=generator)
    return carry


def outputs(step, xs, carry):
    """Outputs of all steps, and the last carry's tensors."""
    ys = []
    for x in xs:
        y, carry = step(x, carry)
        ys.append(y)
    return [torch.stack(ys), *(leaf for block in carry for leaf in block)]


def assert_same(backbone, step, batch=2, steps=4, tolerance=TOLERANCE):
    """``step`` is ``backbone`` in float64, to ``tolerance`` and a few roundings of the input.

    These weigh where a norm is over one number or two that happen to be near 0.
    """
    generator = torch.Generator().manual_seed(0)
    xs = torch.randn(steps, batch, backbone.d_model, generator=generator)
    carry = random_carry(backbone, batch, generator)
    exact = copy.deepcopy(backbone).double()
    double = tuple(type(block)(*(leaf.double() for leaf in block)) for block in carry)
    with torch.no_grad():
        expected = outputs(exact.step, xs.double(), double)
        rounded = outputs(exact.step, xs.double() * (1 + torch.finfo(torch.float32).eps), double)
        for fast, slow, other in zip(outputs(step, xs, carry), expected, rounded, strict=True):
            if slow.numel():
                allowed = tolerance * slow.abs().max() + 8 * (other - slow).abs().max()
                assert (fast.double() - slow).abs().max() <= allowed


@settings(max_examples=25, deadline=None)
@given(
    d_model=st.sampled_from([1, 7, 24, 64, 70, 130]),
    n_layers=st.integers(1, 3),
    d_state=st.sampled_from([1, 3, 16, 40]),
    d_conv=st.integers(1, 5),
    expand=st.integers(1, 3),
    dt_rank=st.sampled_from(["auto", 1, 5]),
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**20),
)
def test_a_step_is_the_stack_in_double_precision(batch, seed, **shape):
    backbone = lively(MambaConfig(**shape), seed)
    assert_same(backbone, backbone.pack().step, batch)
    assert_same(backbone, backbone.step, batch)


@pytest.mark.parametrize("rate", [-40.0, 0.0, 12.0])
def test_extremes_of_decay(rate):
    backbone = lively(SMALL)
    with torch.no_grad():
        for layer in backbone.layers:
            layer.mixer.A_log.fill_(rate)
    assert_same(backbone, backbone.step)


def test_bfloat16_rounds_the_matrices_and_nothing_else():
    backbone = lively(SMALL)
    pack = backbone.pack("bfloat16")
    rounded = copy.deepcopy(backbone)
    with torch.no_grad():
        for layer in rounded.layers:
            for part in (layer.mixer.in_proj, layer.mixer.x_proj, layer.mixer.out_proj):
                part.weight.copy_(part.weight.bfloat16())
    assert_same(rounded, pack.step)


def test_int8_errs_by_half_a_step_of_each_scale():
    """Of weights that are whole multiples of their scale nothing is lost; of others little."""
    backbone = lively(SMALL)
    assert_same(backbone, backbone.pack("int8").step, tolerance=0.03)
    with torch.no_grad():
        for layer in backbone.layers:
            for part in (layer.mixer.in_proj, layer.mixer.x_proj, layer.mixer.out_proj):
                part.weight.copy_(
                    torch.randint(-126, 127, part.weight.shape, generator=torch.Generator().manual_seed(0))
                )
                part.weight[:, :1] = 127.0
                part.weight.div_(1024.0)
    assert_same(backbone, backbone.pack("int8").step)


def test_helping_threads_change_nothing(monkeypatch):
    backbone, generator = lively(MambaConfig(d_model=130, n_layers=3)), torch.Generator().manual_seed(0)
    # many steps: one in a few ends with another thread's piece
    xs, carry = torch.randn(200, 5, 130, generator=generator), random_carry(backbone, 5, generator)
    with torch.no_grad():
        alone = outputs(backbone.step, xs, clone_carry(carry))
        monkeypatch.setattr(packed_mamba, "ALONE", 0)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        helped = outputs(backbone.step, xs, carry)
    assert all(map(torch.equal, alone, helped))


def test_a_thread_that_comes_too_late_touches_nothing(monkeypatch):
    backbone, calls = lively(SMALL), []
    original = packed_mamba.run_pieces
    monkeypatch.setattr(packed_mamba, "run_pieces", lambda *a, **k: (calls.append(a), original(*a, **k)))
    with torch.no_grad():
        y, carry = backbone.step(torch.ones(1, 24), backbone.initial_carry(1))
    before = [y.clone(), *(leaf.clone() for block in carry for leaf in block)]
    loop, _, _, *arguments = calls[0]
    loop(0, 1, *arguments)
    assert all(map(torch.equal, before, [y, *(leaf for block in carry for leaf in block)]))


def test_the_carry_is_updated_where_it_lies():
    backbone = lively(SMALL)
    carry = backbone.initial_carry(2)
    places = [leaf.data_ptr() for block in carry for leaf in block]
    with torch.inference_mode():
        _, carry = backbone.step(torch.ones(2, 24), carry)
    assert [leaf.data_ptr() for block in carry for leaf in block] == places
    assert all(leaf.abs().max() > 0 for block in carry for leaf in block)


def test_a_carry_that_gradients_need_is_not_overwritten():
    backbone = lively(SMALL)
    _, carry = backbone(torch.ones(1, 5, 24))
    before = clone_carry(carry)
    with torch.no_grad():
        backbone.step(torch.ones(1, 24), carry)
    assert all(torch.equal(a, b) for x, y in zip(before, carry, strict=True) for a, b in zip(x, y, strict=True))


def test_a_strided_carry_and_input():
    backbone = lively(SMALL)
    x = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))[:, ::2]
    carry = random_carry(backbone, 4, torch.Generator().manual_seed(0))
    strided = tuple(type(block)(*(leaf[::2] for leaf in block)) for block in carry)
    with torch.no_grad():
        expected, _ = backbone.step(x.contiguous(), clone_carry(strided))
        y, _ = backbone.step(x, strided)
    assert torch.equal(y, expected)


def replace_parameter(backbone):
    backbone.layers[1].mixer.D = nn.Parameter(torch.full((48,), 3.0))


def replace_module(backbone):
    backbone.layers[0].mixer.in_proj = nn.Linear(24, 96, bias=False)


def replace_layer(backbone):
    backbone.layers[0] = lively(SMALL, seed=7).layers[0]


def edit_data(backbone):
    backbone.norm_f.weight.data.mul_(2.0)  # past autograd: PyTorch does not count this change
    backbone.eval()


def fused_optimizer(backbone):
    """It writes past autograd, too."""
    optimizer = torch.optim.Adam(backbone.parameters(), lr=0.1, fused=True)
    for weight in backbone.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()


def fewer_layers(backbone):
    backbone.layers = backbone.layers[:1]


def more_layers(backbone):
    backbone.layers.append(lively(SMALL, seed=5).layers[0])


def replace_norm(backbone):
    backbone.norm_f = lively(SMALL, seed=5).norm_f


def give_a_bias(backbone):
    backbone.layers[0].mixer.in_proj = torch.nn.Linear(24, 96)


def other_epsilon(backbone):
    backbone.layers[0].norm = torch.nn.RMSNorm(24, eps=0.1)


CHANGES = [
    fused_optimizer,
    lambda backbone: backbone.layers[0].mixer.A_log.add_(1.0),
    lambda backbone: backbone.load_state_dict(lively(SMALL, seed=5).state_dict()),
    lambda backbone: backbone.load_state_dict(lively(SMALL, seed=5).state_dict(), assign=True),
    replace_parameter,
    replace_module,
    replace_layer,
    edit_data,
    fewer_layers,
    more_layers,
    replace_norm,
    give_a_bias,
    other_epsilon,
]


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_new_weights_are_noticed(change):
    """Also those of other modules; a stack that is not what its config says is stepped one after the other."""
    backbone = lively(SMALL)
    pack = backbone.pack()
    for step in (backbone.step, pack.step):
        assert_same(backbone, step)
    change(backbone)
    assert_same(backbone, backbone.step)
    if PackedMamba.accepts(backbone):
        assert_same(backbone, pack.step)
    else:
        assert change in (fewer_layers, more_layers, give_a_bias, other_epsilon)
        with pytest.raises(ConfigError, match="modules are its own"):
            pack.step(torch.ones(1, 24), backbone.initial_carry(1))


@torch.no_grad()
def test_foreign_modules_are_stepped_one_after_the_other():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2.0 * super().forward(x)

    backbone = lively(SMALL)
    pack = backbone.pack()
    assert_same(backbone, backbone.step)
    backbone.layers[0].mixer.in_proj = Doubled(24, 96, bias=False)
    assert_same(backbone, backbone.step)
    with pytest.raises(ConfigError, match="modules are its own"):
        pack.step(torch.ones(1, 24), backbone.initial_carry(1))


def hook(part):
    part.register_forward_hook(lambda module, inputs, output: 2.0 * output)


@pytest.mark.parametrize("change", [hook, lambda part: prune.l1_unstructured(part, "weight", 0.5)])
@torch.no_grad()
def test_hooks_and_pruned_weights_have_their_say(change):
    backbone, x = lively(SMALL), torch.ones(1, 24)
    before, _ = backbone.step(x, backbone.initial_carry(1))
    change(backbone.layers[0].mixer.x_proj)
    assert not PackedMamba.accepts(backbone)
    y, _ = backbone.step(x, backbone.initial_carry(1))
    assert torch.equal(y, backbone.step_by_layers(x, backbone.initial_carry(1))[0])
    assert not torch.equal(y, before)


def test_a_carry_that_a_gradient_needs_is_missed_aloud():
    backbone, carry = lively(SMALL), lively(SMALL).initial_carry(1)
    y, _ = backbone(torch.ones(1, 5, 24), carry)
    with torch.no_grad():
        backbone.step(torch.ones(1, 24), carry)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_weights_of_inference_mode_are_stepped_slowly_with_a_warning():
    _warn_of_inference_weights.cache_clear()
    with torch.inference_mode():
        backbone = lively(SMALL)
        with pytest.warns(RuntimeWarning, match=r"under torch\.inference_mode"):
            backbone.step(torch.ones(1, 24), backbone.initial_carry(1))
        backbone.step(torch.ones(1, 24), backbone.initial_carry(1))  # once is enough
    assert backbone._packed is None


@torch.no_grad()
def test_defaults_for_new_tensors_do_not_reach_inside():
    backbone, x = lively(SMALL), torch.ones(1, 24)
    carry = backbone.initial_carry(1)
    with torch.device("meta"):
        y, _ = backbone.step(x, carry)
    assert y.is_cpu


@torch.no_grad()
def test_copies_leave_the_packed_weights_behind():
    backbone = lively(SMALL)
    backbone.step(torch.ones(1, 24), backbone.initial_carry(1))
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert twin._packed is None
        assert_same(backbone, twin.step)


@torch.no_grad()
def test_a_forced_reference_is_not_compiled(monkeypatch):
    monkeypatch.setenv("ICRL_KERNEL", "reference")
    backbone = lively(SMALL)
    assert_same(backbone, backbone.step)
    assert backbone._packed is None


@torch.no_grad()
def test_no_rows():
    backbone = lively(SMALL)
    y, _ = backbone.step(torch.ones(0, 24), backbone.initial_carry(0))
    assert y.shape == (0, 24)


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ConfigError, match="float32, bfloat16, int8"):
        lively(SMALL).pack("float16")
    with pytest.raises(ConfigError, match="float32 on the CPU"):
        lively(SMALL).double().pack()


@torch.no_grad()
def test_shapes_and_dtypes_that_do_not_fit_are_refused():
    """Compiled code writes where it is told to: a wrong shape would end the process."""
    backbone = lively(SMALL)
    pack, x, carry = backbone.pack(), torch.ones(2, 24), backbone.initial_carry(2)
    for wrong in (torch.ones(2, 23), torch.ones(24), x.double(), x.to("meta")):
        with pytest.raises(InputError, match=r"x: expected shape \[batch, 24\]"):
            pack.step(wrong, carry)
    taps, state = carry[0]
    for wrong in (
        carry[:1],
        backbone.initial_carry(3),
        (type(carry[0])(state, taps), carry[1]),
        backbone.initial_carry(2, dtype=torch.float64),
    ):
        with pytest.raises(InputError, match="carry: expected"):
            pack.step(x, wrong)
