"""config.json is read strictly and written without loss."""

import json
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl_agents.config import AgentConfig, ModelConfig, from_dict, load_json, to_dict
from icrl_agents.errors import ConfigError


@given(
    st.integers(1, 40),
    st.sampled_from(["transition", "element"]),
    st.sampled_from(["deterministic", "gaussian", "mixture"]),
    st.integers(0, 300),
    st.integers(1, 3),
    st.booleans(),
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3),
    st.lists(st.floats(0.125, 1e6, width=32), min_size=1, max_size=5),
)
def test_any_config_survives_json(observation_dim, tokenization, head, hidden, layers, masked, options, high):
    model = ModelConfig(observation_dim, len(high), "mamba", options, tokenization, head, hidden, layers, masked)
    low = tuple(-h for h in high)
    config = AgentConfig("a", "e", low, tuple(high), 50, 40, "paper", "hash", "4.0", model, {"x": [1, 2]})
    assert from_dict(AgentConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_save_and_load(make_config, tmp_path):
    config = make_config()
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert load_json(AgentConfig, tmp_path / "config.json") == config


WRONG = {
    "unknown key": ({"colour": "red"}, "'colour'.*known: name"),
    "missing key": ({"name": ...}, "'name'"),
    "number for text": ({"name": 3}, "name: expected str"),
    "text for number": ({"episode_steps": "50"}, "episode_steps: expected int"),
    "float for int": ({"episode_steps": 50.0}, "episode_steps: expected int"),
    "bool for int": ({"episode_steps": True}, "episode_steps: expected int"),
    "zero steps": ({"episode_steps": 0}, "at least 1"),
    "text for list": ({"action_low": "-1"}, "action_low: expected a list"),
    "text in list": ({"action_low": [-1.0, "x"]}, r"action_low\[1\]"),
    "bounds missing": ({"action_low": [-1.0]}, "2 bounds"),
    "bounds swapped": ({"action_low": [1.0, 1.0], "action_high": [-1.0, -1.0]}, "low below high"),
    "bounds nan": ({"action_low": [float("nan"), -1.0]}, "finite"),
    "bounds infinite": ({"action_high": [float("inf"), 1.0]}, "finite"),
    "bounds too large": ({"action_high": [10**400, 1]}, "too large"),
    "options no object": ({"env_options": [1]}, "env_options: expected Mapping"),
    "model no object": ({"model": 3}, "model: expected an object"),
    "other version": ({"format_version": 99}, "format_version 99"),
    "no version": ({"format_version": ...}, "format_version None"),
}
WRONG_MODEL = {
    "unknown head": ({"head": "laplace"}, "expected one of 'deterministic', 'gaussian', 'mixture'"),
    "unknown key": ({"layers": 3}, "config.json.model: unknown key.*'layers'"),
    "no observation": ({"observation_dim": 0}, "at least 1"),
    "negative head": ({"head_hidden": -1}, "at least 0"),
    "one component": ({"head": "mixture", "head_components": 1}, "head_components.* at least 2"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_config_is_refused_with_the_reason(make_config, tmp_path, change, message):
    data = {key: value for key, value in {**to_dict(make_config()), **change}.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=message):
        load_json(AgentConfig, tmp_path / "config.json")


@pytest.mark.parametrize(("change", "message"), WRONG_MODEL.values(), ids=WRONG_MODEL.keys())
def test_a_wrong_model_is_refused_with_the_reason(make_config, tmp_path, change, message):
    data = to_dict(make_config())
    data["model"] |= change
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=message):
        load_json(AgentConfig, tmp_path / "config.json")


NOT_JSON = {
    "empty": b"",
    "half": b'{"name": ',
    "list": b"[]",
    "no utf-8": b'{"name": "\xff"}',
    "deep": b"[" * 100_000,
    "long number": b'{"name": ' + b"1" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_json(AgentConfig, tmp_path / "config.json")


def test_a_missing_file_or_a_directory_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.json does not exist"):
        load_json(AgentConfig, tmp_path / "nowhere.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_json(AgentConfig, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "nested deeper than 32 levels"),
        (r'{"a": "\ud800"}', "not valid JSON"),  # half of a surrogate pair: it could be read and never be written
    ],
)
def test_what_could_not_be_written_again_is_refused(make_config, tmp_path, options, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(make_config())))
    path.write_text(path.read_text().replace('"env_options": {}', f'"env_options": {options}'))
    with pytest.raises(ConfigError, match=message):
        load_json(AgentConfig, path)
    path.write_text(path.read_text().replace(options, '{"a": [[["\\u00e9"]]]}'))
    assert load_json(AgentConfig, path).env_options == {"a": [[["\u00e9"]]]}


def test_bounds_are_finite_in_float32(make_config):
    with pytest.raises(ConfigError, match="finite in float32"):
        replace(make_config(), action_high=(1e39, 1.0))


@dataclass(frozen=True)
class Choice:
    rank: int | Literal["auto"] = "auto"
    limit: float | None = None


@pytest.mark.parametrize("value", [{"rank": 3}, {"rank": "auto"}, {"limit": None}, {"limit": 2}])
def test_unions_take_any_of_their_types(value):
    assert to_dict(from_dict(Choice, value)) == {"rank": "auto", "limit": None, **value}


@pytest.mark.parametrize("value", [{"rank": "none"}, {"rank": None}, {"limit": "2"}])
def test_unions_take_nothing_else(value):
    with pytest.raises(ConfigError, match="fits none of"):
        from_dict(Choice, value)


@pytest.mark.parametrize("change", [{"tokenization": "word"}, {"head": "laplace"}])
def test_a_model_config_made_in_python_takes_only_listed_values(make_config, change):
    with pytest.raises(ConfigError, match=f"{next(iter(change))}: expected one of"):
        replace(make_config().model, **change)


def test_a_config_made_in_python_is_checked_too(make_config):
    with pytest.raises(ConfigError, match="low below high"):
        replace(make_config(), action_high=(-2.0, 1.0))


@pytest.mark.parametrize("name", ["../out", "/tmp/elsewhere", "a\\b", "..", "a\0b", "a\nb"])
def test_a_name_leads_nowhere(make_config, name):
    """Files are named after it, and a downloaded config says it."""
    with pytest.raises(ConfigError, match="no slashes and no control characters"):
        replace(make_config(), name=name)


def test_bounds_are_the_same_whatever_their_type(make_config):
    config = make_config()
    whole = replace(config, action_low=(-1, -1), action_high=(1, np.float32(1)))
    assert to_dict(whole) == to_dict(config)
    assert [type(bound) for bound in (*whole.action_low, *whole.action_high)] == [float] * 4
