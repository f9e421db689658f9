"""On-policy distillation: the student acts in the training tasks, and who was told the task labels what it meets.

Learning histories show a student only what their sources met. Acting by itself it meets other things, and the mistakes
add up (Ross, Gordon and Bagnell 2011, arXiv 1011.0686). Here every round lets the student act from an empty memory,
mixed with its teacher, with the teachers of *other* tasks, and with noise; the right teacher's action on every
visited observation is the target. The student sees what it will see later: observations, actions and rewards.

    K tasks, m rows a task, N = K m rows, E episodes a round, L steps, T token entries, A action entries
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from icrl_agents.agent import InContextAgent
from icrl_agents.atomic import write_atomically
from icrl_agents.config import AgentConfig
from icrl_agents.errors import ConfigError, DatasetError
from icrl_agents.model import InContextModel
from icrl_agents.training.collection import make_rows
from icrl_agents.training.histories import History
from icrl_agents.training.manifest import Manifest
from icrl_agents.training.windows import WindowBatch, encode_history, token_statistics


class Teachers(Protocol):
    """The task-informed policies of K tasks, e.g. :class:`icrl_agents.training.sources.policies.SnapshotPolicies`."""

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Each policy on its own observations: ``[K, m, N_o]`` to ``[K, m, A]``."""

    def __len__(self) -> int:
        """K."""


@dataclass(frozen=True)
class OnPolicyConfig:
    """How the rounds of on-policy distillation go.

    Attributes:
        rows_per_task: m, environments of each training task.
        round_updates: updates between two rounds.
        keep_rounds: the newest rounds, which updates draw from.
        short_episodes: E of the rounds in the first part of a run; later ones have the run's ``episodes``.
        short_fraction: share of the run's updates that the first part takes.
        teacher: probability that a row's episode is acted by its own teacher, in the first rounds; the last
            value holds for all later ones.
        wrong_teacher: probability that it is acted by the teacher of another task.
        noise: standard deviations of the noise on executed actions, one of which is drawn for each row's episode.
    """

    rows_per_task: int = 2
    round_updates: int = 25
    keep_rounds: int = 8
    short_episodes: int = 10
    short_fraction: float = 0.6
    teacher: tuple[float, ...] = (1.0, 0.6, 0.3, 0.1)
    wrong_teacher: float = 0.1
    noise: tuple[float, ...] = (0.0, 0.0, 0.1, 0.3)


class OnPolicySampler:
    """Rounds of the student's own experience, and batches of whole sequences from the newest of them.

    Rounds are written to the run's directory, so that a killed run finds them again.

    Args:
        config: how the rounds go.
        manifest: of the dataset that the teachers learned on; its tasks are the training tasks.
        agent_config: of the student.
        teachers: one a task.
        directory: of the run.
        updates: of the whole run.
        batch_size: sequences of full length an update; of shorter ones it takes as many more.
        episodes: E of the full length.
        seed: of everything.

    Raises:
        ConfigError: there are not as many teachers as tasks.
    """

    def __init__(
        self,
        config: OnPolicyConfig,
        manifest: Manifest,
        agent_config: AgentConfig,
        teachers: Teachers,
        directory: Path,
        *,
        updates: int,
        batch_size: int,
        episodes: int,
        seed: int,
    ) -> None:
        if len(teachers) != len(manifest.tasks):
            raise ConfigError(f"expected a teacher for each of {len(manifest.tasks)} tasks, got {len(teachers)}")
        self._config, self._manifest, self._agent_config = config, manifest, agent_config
        self._teachers, self._directory = teachers, directory / "rounds"
        self._rounds = -(-updates // config.round_updates)
        self._batch_steps = batch_size * episodes * manifest.episode_steps
        self._episodes, self._seed = episodes, seed
        self._env = make_rows(manifest.env_id, manifest.tasks, config.rows_per_task)
        self._kept: dict[int, dict[str, np.ndarray]] = {}
        self._random = np.random.default_rng([seed, 1])

    def prepare(self, update: int, model: InContextModel) -> bool:
        """Before an update, counted from 1: let the student act where a round is due.

        Returns:
            Whether there was a round; then the run has to save its state, because older rounds go.
        """
        number, within = divmod(update - 1, self._config.round_updates)
        if within:
            return False
        self._random = np.random.default_rng([self._seed, 1, number])
        round_ = self._act(number, model)
        self._directory.mkdir(exist_ok=True)
        write_atomically(self._file(number), lambda path: save_file(round_, path))
        self._kept[number] = round_
        self._forget(number)
        if number == 0:
            tokens = round_["tokens"]
            mean, std = token_statistics(list(tokens), model.layout)
            model.token_mean.copy_(torch.from_numpy(mean))
            model.token_std.copy_(torch.from_numpy(std))
        return True

    def sample(self) -> WindowBatch:
        """A batch of whole sequences, from the kept rounds alike."""
        newest = self._kept[max(self._kept)]
        length = newest["tokens"].shape[1]
        rounds = [r for r in self._kept.values() if r["tokens"].shape[1] == length]
        picked = [
            (rounds[self._random.integers(len(rounds))], int(self._random.integers(len(newest["tokens"]))))
            for _ in range(max(1, self._batch_steps // length))
        ]
        tokens, targets = (np.stack([r[name][row] for r, row in picked]) for name in ("tokens", "targets"))
        return WindowBatch(tokens, targets, np.ones(tokens.shape[:2], bool))

    def state(self) -> str:
        """Where the sampler stands, as JSON text."""
        return json.dumps({"random": self._random.bit_generator.state, "rounds": sorted(self._kept)})

    def restore(self, state: str) -> None:
        """Go on from a saved :meth:`state`.

        Raises:
            DatasetError: a round is missing or damaged.
        """
        saved: dict[str, Any] = json.loads(state)
        self._random.bit_generator.state = saved["random"]
        try:
            self._kept = {number: load_file(self._file(number)) for number in saved["rounds"]}
        except (OSError, SafetensorError) as error:
            raise DatasetError(f"{self._directory}: a round of this run is missing or damaged: {error}") from None

    def _act(self, number: int, model: InContextModel) -> dict[str, np.ndarray]:
        """One round: tokens ``[N, L, T]`` and targets ``[N, L, A]``."""
        episodes = (
            self._config.short_episodes if number < self._config.short_fraction * self._rounds else self._episodes
        )
        horizon, rows = self._manifest.episode_steps, self._env.num_envs
        steps = episodes * horizon
        rng = np.random.default_rng([self._seed, 0, number])
        low, high = (
            np.asarray(bound, np.float32) for bound in (self._agent_config.action_low, self._agent_config.action_high)
        )
        student = InContextAgent(model, self._agent_config)
        student.reset(env=self._env, seed=self._seed)
        observations = np.empty((rows, steps, self._manifest.observation_dim), np.float32)
        actions, targets = (np.empty((rows, steps, self._manifest.action_dim), np.float32) for _ in range(2))
        rewards = np.empty((rows, steps), np.float32)
        ends = np.empty((2, rows, steps), bool)
        observation, _ = self._env.reset(seed=int(rng.integers(2**31)))
        mode, noise, shift = self._behaviour(number, rng)
        for t in range(steps):
            observations[:, t] = observation
            targets[:, t], wrong = self._labels(observation, shift)
            action = student.act(observation)
            action = np.where(mode[:, None] == 1, targets[:, t], np.where(mode[:, None] == 2, wrong, action))
            action = np.clip(action + noise[:, None] * rng.standard_normal(action.shape), low, high).astype(np.float32)
            actions[:, t] = action
            observation, rewards[:, t], ends[0, :, t], ends[1, :, t], _ = self._env.step(action)
            student.observe(rewards[:, t], ends[0, :, t], ends[1, :, t], action=action)
            done = ends[0, :, t] | ends[1, :, t]
            if done.any():
                fresh = self._behaviour(number, rng)
                mode, noise = (np.where(done, new, old) for new, old in zip(fresh[:2], (mode, noise), strict=True))
                shift = fresh[2]
        tokens = np.stack(
            [
                encode_history(_history(*parts), model.layout)
                for parts in zip(observations, actions, rewards, ends[0], ends[1], strict=True)
            ]
        )
        return {"tokens": tokens, "targets": targets}

    def _behaviour(self, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
        """Who acts in each row ``[N]`` (0 student, 1 its teacher, 2 another's), noise ``[N]``, and who the other is."""
        config, rows = self._config, self._env.num_envs
        teacher = config.teacher[min(number, len(config.teacher) - 1)]
        draw = rng.random(rows)
        mode = np.where(draw < teacher, 1, 0)
        mode[rng.random(rows) < config.wrong_teacher] = 2
        return (
            mode,
            rng.choice(np.asarray(config.noise), rows),
            int(rng.integers(1, max(2, len(self._teachers)))),
        )

    def _labels(self, observation: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
        """What each row's teacher would do ``[N, A]``, and what the teacher ``shift`` tasks further would."""
        by_task = observation.reshape(len(self._teachers), self._config.rows_per_task, -1).astype(np.float32)
        right = self._teachers.act(by_task)
        wrong = np.roll(self._teachers.act(np.roll(by_task, shift, axis=0)), -shift, axis=0)
        return right.reshape(len(observation), -1), wrong.reshape(len(observation), -1)

    def _forget(self, number: int) -> None:
        """Drop rounds that are too old; the file of the one before stays until the run's state is past it."""
        for old in [n for n in self._kept if n <= number - self._config.keep_rounds]:
            del self._kept[old]
        self._file(number - self._config.keep_rounds - 1).unlink(missing_ok=True)

    def _file(self, number: int) -> Path:
        return self._directory / f"{number:05d}.safetensors"


def _history(
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
) -> History:
    """A row of a round as a history; what a history knows beyond that is not needed for its tokens."""
    ends = np.flatnonzero(terminated | truncated) + 1
    if not len(ends) or ends[-1] != len(rewards):
        ends = np.append(ends, len(rewards))
    finals = np.zeros((len(ends), observations.shape[1]), np.float32)
    return History(observations, actions, actions, rewards, terminated, truncated, finals, ends)
