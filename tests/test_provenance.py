"""A checkpoint that was made elsewhere says so, in one line."""

import warnings
from dataclasses import replace

import pytest

from icrl_agents import InContextAgent, agent_names
from icrl_agents.errors import ProvenanceWarning
from icrl_agents.provenance import differences


def test_what_differs_is_named(make_config):
    config = make_config()
    assert differences(config) == ()
    other = replace(config, mujoco_version="3.2.1", split_hash="0123")
    physics, split = differences(other)
    assert physics.startswith("mujoco 3.2.1 (here ")
    assert split == f"split 'paper' of icrl/ReacherGoal-v0 with hash 0123 (here {config.split_hash})"
    assert differences(replace(config, split="own")) == (
        f"split 'own' of icrl/ReacherGoal-v0 with hash {config.split_hash} (here there are paper)",
    )


@pytest.mark.parametrize(
    "unknown", [{"mujoco_version": "unknown", "split_hash": ""}, {"env_id": "somebodys/Env-v0", "split_hash": "0123"}]
)
def test_nothing_is_said_of_what_is_not_known(make_config, unknown):
    assert differences(replace(make_config(), **unknown)) == ()


def test_loading_warns_once_in_one_line(make_agent, tmp_path):
    agent = make_agent()
    InContextAgent(agent.model, replace(agent.config, mujoco_version="3.2.1", split_hash="0")).save_pretrained(tmp_path)
    with pytest.warns(ProvenanceWarning, match=r"mujoco 3\.2\.1 .* and split 'paper'") as caught:
        loaded = InContextAgent.from_pretrained(tmp_path)
    (warning,) = caught
    assert "\n" not in str(warning.message)
    assert warning.filename == __file__
    loaded.make_env().close()  # warned of already; another warning would be an error here
    loaded.clone().make_vec_env(2).close()


def test_making_the_environment_warns_where_nothing_was_loaded(make_agent):
    agent = make_agent()
    built = InContextAgent(agent.model, replace(agent.config, mujoco_version="3.2.1"))
    with pytest.warns(ProvenanceWarning, match="mujoco") as caught:
        built.make_env().close()
    assert caught[0].filename == __file__
    built.make_env().close()


def test_the_bundled_agents_are_at_home_here():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in agent_names():
            InContextAgent.from_pretrained(name)
