"""Every environment has every source at every budget, and all of them are settings that can run."""

from dataclasses import replace

import pytest

from icrl_agents.envs import env_ids, task_split
from icrl_agents.errors import ConfigError
from icrl_agents.training.collection import check_collection, collection_manifest
from icrl_agents.training.sources.ppo import PPOConfig
from icrl_agents.training.sources.presets import SOURCES, collection_preset


@pytest.mark.parametrize("env_id", env_ids())
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("preset", ["laptop", "paper"])
def test_there_is_a_setting_that_can_run(env_id: str, source: str, preset: str) -> None:
    config = collection_preset(env_id, preset, source)
    check_collection(config)
    tasks = collection_manifest(config).tasks
    assert config.env_id == env_id
    assert tasks[: len(task_split(env_id).train)] == task_split(env_id).train
    assert config.steps >= config.shard_steps


@pytest.mark.parametrize("env_id", env_ids())
def test_only_an_informed_learner_of_a_symmetric_environment_is_symmetric(env_id: str) -> None:
    alone = replace(collection_preset(env_id, "laptop", "task-parallel-ppo"), ppo=PPOConfig(symmetric=True))
    with pytest.raises(ConfigError, match="task-informed learner of an environment whose definition has symmetries"):
        check_collection(alone)
    informed = replace(collection_preset(env_id, "laptop", "task-informed"), specialise_steps_per_task=0)
    ppo = replace(informed.ppo, symmetric=True)
    if env_id == "icrl/AntDir-v0":
        check_collection(replace(informed, ppo=ppo))
        with pytest.raises(ConfigError, match="one task"):
            check_collection(
                replace(informed, specialise_steps_per_task=10_000, specialise=replace(ppo, log_std_init=-2.0))
            )
    else:
        with pytest.raises(ConfigError, match="symmetries"):
            check_collection(replace(informed, ppo=ppo))
