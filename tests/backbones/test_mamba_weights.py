"""Checkpoints of mamba-ssm and transformers become backbones that compute the same."""

import json
import re
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from icrl_agents.backbones import backbone_names, make_backbone
from icrl_agents.backbones.mamba import Mamba, MambaConfig
from icrl_agents.backbones.mamba_weights import CONVERSION, import_mamba
from icrl_agents.backbones.weights import BackboneConfig, load_backbone, save_backbone
from icrl_agents.cli import main
from icrl_agents.errors import CheckpointError, ConfigError, UnknownNameError

AUTHORS = {
    "d_model": 12,
    "n_layer": 2,
    "vocab_size": 30,
    "ssm_cfg": {"d_state": 5, "dt_min": 0.001},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}
TRANSFORMERS = {
    "model_type": "mamba",
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "state_size": 5,
    "conv_kernel": 4,
    "expand": 2,
    "time_step_rank": 1,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "layer_norm_epsilon": 1e-05,
    "vocab_size": 30,
}


def language_model_weights(embedding="embedding"):
    """By the authors' names and shapes: width 12, 24 channels, 5 states, rank 1, 2 blocks."""
    shapes = {f"backbone.{embedding}.weight": (32, 12), "lm_head.weight": (32, 12), "backbone.norm_f.weight": (12,)}
    block = {
        "norm.weight": (12,),
        "mixer.A_log": (24, 5),
        "mixer.D": (24,),
        "mixer.in_proj.weight": (48, 12),
        "mixer.conv1d.weight": (24, 1, 4),
        "mixer.conv1d.bias": (24,),
        "mixer.x_proj.weight": (11, 24),
        "mixer.dt_proj.weight": (24, 1),
        "mixer.dt_proj.bias": (24,),
        "mixer.out_proj.weight": (12, 24),
    }
    shapes |= {f"backbone.layers.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).div(2) for name, shape in shapes.items()}


def write(directory, config, weights, name="model.safetensors"):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(weights, directory / name)
    return directory


def reads(weights, x):
    """The published equations, time last and one step after the other; ``x`` [B, L, D] is the embedded text."""

    def rms_norm(x, weight):
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight

    for i in range(2):
        w = {k.removeprefix(f"backbone.layers.{i}."): v for k, v in weights.items()}
        hidden, gate = (rms_norm(x, w["norm.weight"]) @ w["mixer.in_proj.weight"].T).mT.chunk(2, 1)  # [B, E, L]
        hidden = F.pad(hidden, (3, 0))
        hidden = F.silu(F.conv1d(hidden, w["mixer.conv1d.weight"], w["mixer.conv1d.bias"], groups=24))
        dt, B, C = (hidden.mT @ w["mixer.x_proj.weight"].T).split([1, 5, 5], -1)
        dt = F.softplus(dt @ w["mixer.dt_proj.weight"].T + w["mixer.dt_proj.bias"])  # [B, L, E]
        decay = torch.exp(torch.einsum("ble,en->blen", dt, -torch.exp(w["mixer.A_log"])))
        added = torch.einsum("ble,bln,bel->blen", dt, B, hidden)
        h, y = torch.zeros(len(x), 24, 5), []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + added[:, t]
            y.append(torch.einsum("ben,bn->be", h, C[:, t]))
        y = torch.stack(y, 1) + w["mixer.D"] * hidden.mT
        x = x + (y * F.silu(gate).mT) @ w["mixer.out_proj.weight"].T
    return rms_norm(x, weights["backbone.norm_f.weight"])


@torch.no_grad()
@pytest.mark.parametrize(("config", "embedding"), [(AUTHORS, "embedding"), (TRANSFORMERS, "embeddings")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_imported_backbone_computes_the_published_equations(tmp_path, config, embedding, dtype):
    weights = {name: weight.to(dtype) for name, weight in language_model_weights(embedding).items()}
    source = write(tmp_path / "lm", config, weights)
    assert import_mamba(source, tmp_path / "out") == MambaConfig(
        12, 2, d_state=5, dt_rank=config.get("time_step_rank", "auto")
    )
    backbone = load_backbone(tmp_path / "out")
    assert isinstance(backbone, Mamba)
    x = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(1))
    expected = reads({name: weight.float() for name, weight in weights.items()}, x)
    torch.testing.assert_close(backbone(x)[0], expected, rtol=1e-4, atol=1e-5)


def test_weights_in_several_files_are_one_checkpoint(tmp_path):
    weights = language_model_weights()
    names = sorted(weights)
    write(tmp_path, AUTHORS, {k: weights[k] for k in names[:7]}, "model-00001-of-00002.safetensors")
    write(tmp_path, AUTHORS, {k: weights[k] for k in names[7:]}, "model-00002-of-00002.safetensors")
    import_mamba(tmp_path, tmp_path / "out")
    write(tmp_path, AUTHORS, {names[0]: weights[names[0]]}, "model-00003-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(names[0])):
        import_mamba(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AUTHORS | {"ssm_cfg": {"layer": "Mamba2"}}, "Mamba-2"),
        (AUTHORS | {"attn_layer_idx": [1]}, "attention"),
        (AUTHORS | {"d_intermediate": 24}, "feed-forward"),
        (AUTHORS | {"rms_norm": False}, "LayerNorm"),
        (AUTHORS | {"ssm_cfg": {"bias": True}}, "biases"),
        (AUTHORS | {"ssm_cfg": {"headdim": 64}}, "headdim"),
        (TRANSFORMERS | {"model_type": "mamba2"}, "'mamba2'; only 'mamba'"),
        (TRANSFORMERS | {"use_conv_bias": False}, "biases"),
        (TRANSFORMERS | {"layer_norm_epsilon": 1e-6}, "epsilon"),
        (AUTHORS | {"n_layer": 10**9}, "1000000000 layers"),
        (AUTHORS | {"ssm_cfg": {"d_state": 16}}, r"mixer.A_log is \[24, 5\], expected \[24, 16\]"),
        ({"hidden_dim": 12}, "no Mamba language model"),
        ([], "expected an object"),
    ],
)
def test_what_is_no_such_mamba_is_refused_by_name(tmp_path, config, message):
    source = write(tmp_path, config, language_model_weights())
    with pytest.raises(CheckpointError, match=message):
        import_mamba(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("d_model", [None, "12", 0])
def test_sizes_that_are_none_are_refused(tmp_path, d_model):
    with pytest.raises(ConfigError, match="d_model"):
        import_mamba(write(tmp_path, AUTHORS | {"d_model": d_model}, language_model_weights()), tmp_path / "out")


def test_tensors_must_be_those_of_the_architecture_and_finite(tmp_path):
    weights = language_model_weights()
    for changed, message in (
        (weights | {"backbone.layers.0.mixer.dt_bias": torch.ones(2)}, r"unexpected \['layers.0.mixer.dt_bias'\]"),
        ({k: v for k, v in weights.items() if "norm_f" not in k}, r"missing \['norm_f.weight'\]"),
        (weights | {"backbone.norm_f.weight": torch.full((12,), torch.nan)}, "norm_f.weight .* not finite"),
    ):
        with pytest.raises(CheckpointError, match=message):
            import_mamba(write(tmp_path, AUTHORS, changed), tmp_path / "out")


def test_a_pickle_is_not_read_and_its_conversion_works(tmp_path, monkeypatch):
    weights = language_model_weights()
    weights["lm_head.weight"] = weights["backbone.embedding.weight"]  # tied, as published
    (tmp_path / "config.json").write_text(json.dumps(AUTHORS))
    with pytest.raises(CheckpointError, match=r"holds no \*.safetensors"):
        import_mamba(tmp_path, tmp_path / "out")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle") as refused:
        import_mamba(tmp_path, tmp_path / "out")
    assert CONVERSION in str(refused.value)
    monkeypatch.chdir(tmp_path)
    exec(CONVERSION, {})
    import_mamba(tmp_path, tmp_path / "out")


def test_the_command(tmp_path, capsys):
    source = write(tmp_path / "lm", AUTHORS, language_model_weights())
    main(["import-mamba", str(source), "--out", str(tmp_path / "out")])
    assert "2 blocks of width 12" in capsys.readouterr().out
    assert load_backbone(tmp_path / "out").d_model == 12
    with pytest.raises(SystemExit) as stopped:
        main(["import-mamba", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "config.json does not exist" in " ".join(capsys.readouterr().err.split())


# ------------------------------------------------------------------ a backbone's own directory


def test_any_registered_backbone_comes_back(backbone, tmp_path):
    [name] = [name for name in backbone_names() if type(make_backbone(name, {})) is type(backbone)]
    save_backbone(tmp_path, BackboneConfig(name, asdict(backbone.config)), backbone.state_dict())
    state = torch.random.get_rng_state()
    again = load_backbone(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(again) is type(backbone)
    assert again.config == backbone.config
    for key, weight in backbone.state_dict().items():
        assert torch.equal(again.state_dict()[key], weight)


def test_damaged_directories_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"backbone.json does not exist"):
        load_backbone(tmp_path)
    options = {"d_model": 8, "n_layers": 1}
    backbone = make_backbone("mamba", options)
    save_backbone(tmp_path, BackboneConfig("mamba", options), backbone.state_dict())
    file = tmp_path / "backbone.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_backbone(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        load_backbone(tmp_path)
    file.write_bytes(whole)
    save_backbone(tmp_path, BackboneConfig("mamba", options | {"d_state": 3}), load_file(file))
    with pytest.raises(CheckpointError, match=r"A_log is \[16, 16\], expected \[16, 3\]"):
        load_backbone(tmp_path)
    save_backbone(tmp_path, BackboneConfig("mamma", options), backbone.state_dict())
    with pytest.raises(UnknownNameError, match="'mamba'"):
        load_backbone(tmp_path)
