"""Every environment has every source at every budget, and all of them are settings that can run."""

import pytest

from icrl_agents.envs import env_definition, env_ids, task_split
from icrl_agents.errors import UnknownNameError
from icrl_agents.training.collection import check_collection, collection_manifest
from icrl_agents.training.sources.presets import SOURCES, collection_preset


@pytest.mark.parametrize("env_id", env_ids())
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("preset", ["laptop", "paper"])
def test_there_is_a_setting_that_can_run(env_id: str, source: str, preset: str) -> None:
    missing = {
        "task-informed-privileged": not env_definition(env_id).privileged_dim,
        "planned": env_id != "icrl/ReacherGoal-v0",
    }
    if missing.get(source):
        with pytest.raises(UnknownNameError, match=f"environment with a {source} source"):
            collection_preset(env_id, preset, source)
        return
    config = collection_preset(env_id, preset, source)
    check_collection(config)
    tasks = collection_manifest(config).tasks
    assert config.env_id == env_id
    assert tasks[: len(task_split(env_id).train)] == task_split(env_id).train
    assert config.steps >= config.shard_steps
