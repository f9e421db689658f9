"""The published splits: what is in them, against the literature's own recipes, and that they cannot drift."""

import json

import numpy as np
import pytest

from icrl_agents.envs import env_definition, env_ids, split_names, task_split
from icrl_agents.envs.reacher_goal import ReacherGoalDefinition
from icrl_agents.envs.splits import split_of
from icrl_agents.errors import TaskError, UnknownNameError

SPLITS = [(env_id, name) for env_id in env_ids() for name in split_names(env_id)]
PUBLISHED = {
    ("icrl/ReacherGoal-v0", "paper"): ((70, 10, 30), "3f0e8bc336c5e3a1"),
    ("icrl/PusherGoal-v0", "paper"): ((35, 10, 30), "4260adb15f4fbda4"),
    ("icrl/HalfCheetahVel-v0", "paper"): ((15, 10, 30), "13c44fd1eb8bd371"),
    ("icrl/HalfCheetahVel-v0", "pearl"): ((90, 10, 30), "40c5528bf989894e"),
    ("icrl/HalfCheetahVel-v0", "macaw"): ((30, 5, 5), "da627c95aad1c7c9"),
    ("icrl/AntDir-v0", "paper"): ((30, 10, 30), "d619021b922a2c5a"),
    ("icrl/AntDir-v0", "macaw"): ((40, 5, 5), "0786fea969c457a5"),
}


@pytest.mark.parametrize(("env_id", "name"), SPLITS)
def test_splits_are_disjoint_valid_and_frozen(env_id: str, name: str) -> None:
    split, definition = task_split(env_id, name), env_definition(env_id)
    assert (split.env_id, split.name) == (env_id, name)
    assert ((len(split.train), len(split.val), len(split.test)), split.content_hash) == PUBLISHED[env_id, name]
    everything = [*split.train, *split.val, *split.test]
    vectors = np.stack([definition.task_vector(task) for task in everything])  # valid
    assert len(np.unique(vectors, axis=0)) == len(everything)  # disjoint
    for task in everything:
        assert json.loads(json.dumps(task)) == task == definition.canonical_task(task)


def test_every_published_split_is_there() -> None:
    assert set(SPLITS) == set(PUBLISHED)
    assert all("paper" in split_names(env_id) for env_id in env_ids())


@pytest.mark.parametrize("env_id", env_ids())
def test_tasks_of_the_papers_split_can_be_retyped(env_id: str) -> None:
    split = task_split(env_id, "paper")
    for task in (*split.train, *split.val, *split.test):
        for number in np.concatenate([np.atleast_1d(part) for part in task.values()]):
            assert round(float(number), 4) == number


def test_pearls_velocities_are_those_of_its_seed() -> None:
    split = task_split("icrl/HalfCheetahVel-v0", "pearl")
    kept = np.random.get_state()  # noqa: NPY002  PEARL's own way
    try:
        np.random.seed(1337)  # noqa: NPY002
        expected = np.random.uniform(0.0, 3.0, size=(130,))  # noqa: NPY002
    finally:
        np.random.set_state(kept)  # noqa: NPY002
    assert [task["velocity"] for task in (*split.train, *split.val, *split.test)] == expected.tolist()


def test_macaws_velocities_are_multiples_of_its_step() -> None:
    split = task_split("icrl/HalfCheetahVel-v0", "macaw")
    # 40 even speeds from 0.075 to 3 are the multiples of 0.075, task index i being the (i + 1)-th
    multiples = [[round(task["velocity"] / 0.075, 9) - 1 for task in tasks] for tasks in (split.test, split.val)]
    assert multiples == [[2, 7, 15, 23, 26], [4, 12, 20, 29, 36]]
    others = sorted(round(task["velocity"] / 0.075, 9) - 1 for task in split.train)
    assert others == sorted(set(range(40)) - {2, 7, 15, 23, 26} - {4, 12, 20, 29, 36})


def test_macaws_test_directions() -> None:
    directions = [task["direction"] for task in task_split("icrl/AntDir-v0", "macaw").test]
    assert directions == [0.245, 1.778, 0.904, 3.569, 4.142]


@pytest.mark.parametrize("env_id", env_ids())
def test_splits_and_subsets_that_are_not_there(env_id: str) -> None:
    with pytest.raises(UnknownNameError, match=r"split .*'papper'.* Did you mean 'paper'\?"):
        task_split(env_id, "papper")
    with pytest.raises(UnknownNameError, match="Did you mean 'test'"):
        task_split(env_id, "paper").subset("tests")


def test_another_content_is_refused() -> None:
    class Drifted(ReacherGoalDefinition):
        def sample_task(self, rng: np.random.Generator) -> dict[str, list[float]]:
            return {"goal": rng.uniform(-0.1, 0.1, 2).tolist()}

    with pytest.raises(TaskError, match="but was published as 3f0e8bc336c5e3a1"):
        split_of(Drifted(), "paper")


def test_a_split_is_the_callers_own_and_can_be_a_key() -> None:
    split = task_split("icrl/AntDir-v0", "paper")
    again = task_split("icrl/AntDir-v0", "paper")
    assert {split: 1}[again] == 1
    split.val[0]["direction"] = 0.0
    assert task_split("icrl/AntDir-v0", "paper").val == again.val != split.val


def test_a_subset_is_the_callers_own() -> None:
    split = task_split("icrl/AntDir-v0", "paper")
    split.subset("val")[0]["direction"] = 0.0
    assert split.subset("val")[0] == split.val[0] != {"direction": 0.0}
