"""The contract of a meta-environment refuses what breaks it, and says what does not hold."""

import copy
import re

import gymnasium
import numpy as np
import pytest
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeLimit

from icrl_agents.envs import env_ids, sample_tasks
from icrl_agents.envs.pusher_goal import PusherGoalEnv
from icrl_agents.envs.reacher_goal import ReacherGoalEnv, ReacherGoalVectorEnv
from icrl_agents.testing import check_meta_env, single_env

HORIZON = 6


@pytest.mark.parametrize("env_id", env_ids())
def test_registered_meta_environments_keep_the_contract(env_id):
    check_meta_env(env_id)


def check(single=ReacherGoalEnv, vector=None, horizon=HORIZON):
    make_vec = None
    if vector is not None:

        def make_vec(num_envs, **options):
            return vector(num_envs, max_episode_steps=horizon, **options)

    check_meta_env(lambda **options: TimeLimit(single(**options), horizon), make_vec)


class LeaksWhenItBegins(ReacherGoalEnv):
    def reset(self, **arguments):
        observation, info = super().reset(**arguments)
        return observation + 1e-9 * self.task["goal"][0], info


class LeaksLater(ReacherGoalEnv):
    def step(self, action):
        observation, *rest = super().step(action)
        return observation + 1e-9 * self.task["goal"][0], *rest


class EndsWhereTheTaskSays(ReacherGoalEnv):
    def step(self, action):
        observation, reward, _, *rest = super().step(action)
        return observation, reward, self.task["goal"][0] > 0, *rest


class TellsInInfo(ReacherGoalEnv):
    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {**info, "debug": {"target": np.array([*self.task["goal"]])}}


class TellsInInfoOfReset(ReacherGoalEnv):
    def reset(self, **arguments):
        observation, info = super().reset(**arguments)
        return observation, {**info, "x": self.task["goal"][0]}


class TellsInALayerOfLists(ReacherGoalEnv):
    def step(self, action):
        *rest, info = super().step(action)
        told = np.empty(1, object)
        told[0] = ({"x": [np.float32(self.task["goal"][1])]},)
        return *rest, {**info, "debug": told}


class LeaksInLaterEpisodes(ReacherGoalEnv):
    steps = 0

    def step(self, action):
        self.steps += 1
        observation, *rest = super().step(action)
        return observation + (1e-9 * self.task["goal"][0] if self.steps > HORIZON + 1 else 0.0), *rest


class KeepsTasksAsGiven(ReacherGoalEnv):
    """Pickled, as if for the next reset: no seed replaces them there."""

    def __getstate__(self):
        state = super().__getstate__()
        return {**state, "pending": state["pending"] or state["task"]}


class CopiesAreNotNew(ReacherGoalEnv):
    copied = False

    def __setstate__(self, state):
        super().__setstate__(state)
        self.copied = True

    def reset(self, **arguments):
        observation, info = super().reset(**arguments)
        return observation, {**info, "new_task": info["new_task"] and not self.copied}


class NeverExposes(ReacherGoalEnv):
    def _exposed(self):
        return {}


class PickledWithoutItsTask(ReacherGoalEnv):
    def __getstate__(self):
        return {**super().__getstate__(), "task": None}


class PickledWithoutItsOptions(ReacherGoalEnv):
    def __init__(self, **options):
        super().__init__(**options)
        EzPickle.__init__(self)


class RedrawsItsTask(ReacherGoalEnv):
    """Where the caller seeds nothing: garage's way."""

    def reset(self, *, seed=None, options=None):
        if seed is None and not options:
            options = {"task": sample_tasks(self.definition.env_id, 1, seed=int(self.np_random.integers(1000)))[0]}
        return super().reset(seed=seed, options=options)


class RedrawsItsTaskAfterEpisodes(ReacherGoalEnv):
    steps = 0

    def step(self, action):
        self.steps += 1
        return super().step(action)

    def reset(self, *, seed=None, options=None):
        if seed is None and not options and self.steps >= HORIZON:
            options = {"task": sample_tasks(self.definition.env_id, 1, seed=self.steps)[0]}
        self.steps = 0
        return super().reset(seed=seed, options=options)


class SharesItsBuffer(ReacherGoalEnv):
    buffer = np.zeros(8)

    def step(self, action):
        observation, *rest = super().step(action)
        self.buffer[:] = observation
        return self.buffer, *rest


class NeverSaysThatTasksAreNew(ReacherGoalEnv):
    def reset(self, **arguments):
        observation, info = super().reset(**arguments)
        return observation, {**info, "new_task": False}


class SaysNothingOfTasks(ReacherGoalEnv):
    def reset(self, **arguments):
        observation, _ = super().reset(**arguments)
        return observation, {}


class AlwaysSaysThatTasksAreNew(ReacherGoalEnv):
    def reset(self, **arguments):
        observation, info = super().reset(**arguments)
        return observation, {**info, "new_task": True}


class SeedsOverrideItsConstructor(ReacherGoalEnv):
    def reset(self, *, seed=None, options=None):
        if seed is not None and not options:
            options = {"task": sample_tasks(self.definition.env_id, 1, seed=seed)[0]}
        return super().reset(seed=seed, options=options)


class IgnoresOptions(ReacherGoalEnv):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed, options=None)


class TakesTasksAtOnce(ReacherGoalEnv):
    def set_task(self, task):
        super().set_task(task)
        self._choice.task = copy.deepcopy(self._choice.saved()["pending"])


class SeedsOverrideSetTask(ReacherGoalEnv):
    def reset(self, *, seed=None, options=None):
        if seed is not None and not options:
            self._choice._pending = None
        return super().reset(seed=seed, options=options)


class HandsOutItsOwnDict(ReacherGoalEnv):
    @property
    def task(self):
        return self._choice.task


class DrawsTasksFromTheStreamOfStates(ReacherGoalEnv):
    def reset_model(self):
        if self._choice._fixed is None:
            self.np_random.uniform()
        return super().reset_model()


class DrawsStatesWithoutSeed(ReacherGoalEnv):
    def reset_model(self):
        self._np_random = np.random.default_rng()
        return super().reset_model()


class DrawsTasksWithoutSeed(ReacherGoalEnv):
    def reset(self, *, seed=None, options=None):
        if seed is not None and self._choice._fixed is None and not options:
            options = {"task": sample_tasks(self.definition.env_id, 1, seed=np.random.default_rng().integers(2**31))[0]}
        return super().reset(seed=seed, options=options)


class RewardsAreNoisy(ReacherGoalEnv):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward + np.random.default_rng().normal(), *rest


class RewardsAreNaN(ReacherGoalEnv):
    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float("nan"), *rest


class RewardsIgnoreTheTask(ReacherGoalEnv):
    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, 1.0, *rest


class ObservationsAreNaN(ReacherGoalEnv):
    def step(self, action):
        observation, *rest = super().step(action)
        return observation * np.nan, *rest


class ObservationsAreFloat32(ReacherGoalEnv):
    def step(self, action):
        observation, *rest = super().step(action)
        return observation.astype(np.float32), *rest


class SpoilsActions(ReacherGoalEnv):
    def step(self, action):
        outcome = super().step(action)
        action *= 0.5
        return outcome


class HasOneTask(ReacherGoalEnv):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed, options={"task": {"goal": [0.1, 0.1]}})


class RefusesNothing(ReacherGoalEnv):
    def set_task(self, task):
        if "goal" in task:
            super().set_task(task)


class RefusesByKeyError(ReacherGoalEnv):
    def set_task(self, task):
        super().set_task({"goal": task["goal"]})


class RefusesNoOption(ReacherGoalEnv):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed, options={"task": (options or {}).get("task")})


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (LeaksWhenItBegins, "the initial observation depends on the task"),
        (LeaksLater, "observations betray the task: at step 1 of equal actions"),
        (EndsWhereTheTaskSays, "ends of episodes betray the task: at step"),
        (TellsInInfo, r"info\['debug'\] of a step betrays the task"),
        (TellsInInfoOfReset, r"info\['x'\] of a reset betrays the task"),
        (TellsInALayerOfLists, r"info\['debug'\] of a step betrays the task"),
        (LeaksInLaterEpisodes, "observations betray the task: at step 2 of equal actions"),
        (KeepsTasksAsGiven, "a seed draws another task after pickling"),
        (CopiesAreNotNew, "the first reset after pickling, is True; got False"),
        (NeverExposes, "expose_task=True puts the task into"),
        (PickledWithoutItsTask, "pickling lost the drawn task"),
        (PickledWithoutItsOptions, "pickling lost the option expose_task"),
        (RedrawsItsTask, "a plain reset at once changed the task"),
        (RedrawsItsTaskAfterEpisodes, "a plain reset after an episode changed the task"),
        (SharesItsBuffer, "an observation changed after it was returned"),
        (SaysNothingOfTasks, "there is no such entry"),
        (NeverSaysThatTasksAreNew, "that drew a task, is True; got False"),
        (AlwaysSaysThatTasksAreNew, "which keeps the task, is False; got True"),
        (SeedsOverrideItsConstructor, "drew a task although the constructor was given one"),
        (IgnoresOptions, 'options={"task": ...} of a reset did not give the task'),
        (TakesTasksAtOnce, "set_task changed the task of the episode that runs"),
        (SeedsOverrideSetTask, r"reset\(seed=...\) did not take the task that set_task gave before"),
        (HandsOutItsOwnDict, "the dict that task returned"),
        (DrawsTasksFromTheStreamOfStates, "or on whether it is drawn"),
        (DrawsStatesWithoutSeed, "same seed and actions, but observations differ at step 0"),
        (DrawsTasksWithoutSeed, "but rewards differ at step 1"),
        (RewardsAreNoisy, "but rewards differ at step 1"),
        (RewardsAreNaN, "rewards are finite, got nan"),
        (RewardsIgnoreTheTask, "no reward of an episode depends on the task"),
        (ObservationsAreNaN, "observations are finite and inside"),
        (ObservationsAreFloat32, "observations are finite and inside"),
        (SpoilsActions, "step changed the action"),
        (HasOneTask, "eight seeds drew only 1 different"),
        (RefusesNothing, "a task with unknown keys is a TaskError, but was accepted"),
        (RefusesByKeyError, "a task with unknown keys is a TaskError, got KeyError"),
        (RefusesNoOption, "an unknown reset option is a TaskError, but was accepted"),
    ],
)
def test_each_breach_of_a_single_environment_is_named(broken, message):
    with pytest.raises(AssertionError, match=re.escape(message) if "{" in message else message):
        check(broken)


class AnotherAutoreset(ReacherGoalVectorEnv):
    def __init__(self, num_envs, **options):
        super().__init__(num_envs, **options)
        self.metadata["autoreset_mode"] = AutoresetMode.NEXT_STEP


class AnotherSpace(ReacherGoalVectorEnv):
    def __init__(self, num_envs, **options):
        super().__init__(num_envs, **options)
        self.single_action_space = gymnasium.spaces.Box(-2, 2, (2,), np.float32)


class AnotherReward(ReacherGoalVectorEnv):
    def step(self, actions):
        observations, rewards, *rest = super().step(actions)
        return observations, np.nextafter(rewards, 0), *rest


class RowsShareASeed(ReacherGoalVectorEnv):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=[seed] * self.num_envs if isinstance(seed, int) else seed, options=options)


class NoFinalObservation(ReacherGoalVectorEnv):
    def step(self, actions):
        *rest, info = super().step(actions)
        return *rest, {name: value for name, value in info.items() if "final" not in name}


class FinalObservationsAreTheNextOnes(ReacherGoalVectorEnv):
    def step(self, actions):
        observations, *rest, info = super().step(actions)
        return observations, *rest, {**info, **({"final_obs": observations} if "final_obs" in info else {})}


class AutoresetSaysThatTasksAreNew(ReacherGoalVectorEnv):
    def step(self, actions):
        *rest, info = super().step(actions)
        return *rest, {**info, "new_task": np.ones(self.num_envs, bool)}


class AutoresetRedrawsTasks(ReacherGoalVectorEnv):
    """Silently, and only for the episodes to come."""

    def step(self, actions):
        *rest, truncated, info = super().step(actions)
        if truncated.all() and self._rngs[0].uniform() < 2:
            self._choices[0].task = {"goal": [0.0, 0.0]}
        return *rest, truncated, info


class TasksAreReversed(ReacherGoalVectorEnv):
    def __init__(self, num_envs, *, tasks=None, **options):
        super().__init__(num_envs, tasks=None if tasks is None else tasks[::-1], **options)


class MasksAreIgnored(ReacherGoalVectorEnv):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed, options={k: v for k, v in (options or {}).items() if k != "reset_mask"})


class RowsTellInInfo(ReacherGoalVectorEnv):
    def step(self, actions):
        *rest, info = super().step(actions)
        return *rest, {**info, "goals": np.array([task["goal"] for task in self.tasks])}


class RowsTellWhenEpisodesEnd(ReacherGoalVectorEnv):
    def step(self, actions):
        *rest, info = super().step(actions)
        if "final_info" in info:
            info["final_info"]["goals"] = np.array([task["goal"] for task in self.tasks])
        return *rest, info


class RowsShareTheirBuffer(ReacherGoalVectorEnv):
    def step(self, actions):
        observations, *rest = super().step(actions)
        self.buffer = getattr(self, "buffer", observations)
        self.buffer[:] = observations
        return self.buffer, *rest


class PrivilegedIsWider(ReacherGoalVectorEnv):
    class Definition(type(ReacherGoalVectorEnv.definition)):
        privileged_dim = 2

        def privileged(self, state):
            return state.qpos[:, :3]

    definition = Definition()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (AnotherAutoreset, "autoreset mode is SAME_STEP, got AutoresetMode.NEXT_STEP"),
        (AnotherSpace, "single_action_space is Box"),
        (AnotherReward, "row 0 is not the single environment: reward"),
        (RowsShareASeed, r"row 1 of reset\(seed=s\) has not the task of the single environment of s \+ 1"),
        (NoFinalObservation, r"info\[final_obs\] lacks an episode that ended"),
        (FinalObservationsAreTheNextOnes, "row 0 is not the single environment: final_obs"),
        (AutoresetSaysThatTasksAreNew, r"info\[new_task\] of an autoreset"),
        (AutoresetRedrawsTasks, "row 0 is not the single environment|autoreset changed a task"),
        (TasksAreReversed, "tasks= of the constructor are not those of the rows"),
        (MasksAreIgnored, "reset_mask: the reset changed observations of other rows"),
        (RowsTellInInfo, r"info\['goals'\] of a step of the vector environment betrays the tasks"),
        (RowsTellWhenEpisodesEnd, r"info\['final_info'\] of a step of the vector environment betrays the tasks"),
        (PrivilegedIsWider, r"of shape \[3, 2\] by its privileged_dim, got \[3, 3\]"),
        (RowsShareTheirBuffer, "an observation of the vector environment changed after it was returned"),
    ],
)
def test_each_breach_of_a_vector_environment_is_named(broken, message):
    with pytest.raises(AssertionError, match=message):
        check(vector=broken)


def test_environments_made_by_functions_pass():
    check(vector=ReacherGoalVectorEnv)


def test_observations_before_contact_are_compared_where_the_task_can_be_touched():
    class LeaksObject(PusherGoalEnv):
        def reset(self, **arguments):
            self.steps = 0
            return super().reset(**arguments)

        def step(self, action):
            self.steps += 1
            observation, *rest = super().step(action)
            return observation + (self.steps > 3) * 1e-9 * self.task["object"][0], *rest

    with pytest.raises(AssertionError, match="observations betray the task before any contact: at step 4"):
        check(LeaksObject)


def test_episodes_that_do_not_end_are_noticed(monkeypatch):
    monkeypatch.setattr(single_env, "LONGEST_EPISODE", 10)
    with pytest.raises(AssertionError, match="an episode did not end within 10 steps"):
        check(horizon=11)


def test_what_is_no_meta_environment_is_named():
    with pytest.raises(AssertionError, match=r"\['task', 'set_task'\] not found"):
        check_meta_env("CartPole-v1")


class Flat(gymnasium.ObservationWrapper):
    observation_space = gymnasium.spaces.Discrete(2)

    def observation(self, observation):
        return 1


def test_other_spaces_are_named():
    with pytest.raises(AssertionError, match=r"observations are in a one-dimensional Box, got Discrete\(2\)"):
        check_meta_env(lambda **options: Flat(TimeLimit(ReacherGoalEnv(**options), HORIZON)))


def test_registration_is_checked():
    try:
        gymnasium.register("broken/Callable-v0", ReacherGoalEnv, max_episode_steps=50)
        gymnasium.register("broken/Horizon-v0", "icrl_agents.envs.reacher_goal:ReacherGoalEnv", max_episode_steps=40)
        with pytest.raises(AssertionError, match="register it by string entry points"):
            check_meta_env("broken/Callable-v0")
        with pytest.raises(AssertionError, match="the definition's horizon is 50, max_episode_steps 40"):
            check_meta_env("broken/Horizon-v0")
    finally:
        for name in ("Callable", "Horizon"):
            gymnasium.registry.pop(f"broken/{name}-v0", None)


def test_one_row_is_too_few():
    with pytest.raises(ValueError, match="at least 2"):
        check_meta_env("icrl/ReacherGoal-v0", rows=1)
