"""On-policy distillation: the student acts in the training tasks, and who was told the task labels what it meets.

Learning histories show a student only what their sources met. Acting by itself it meets other things, and the mistakes
add up (Ross, Gordon and Bagnell 2011, arXiv 1011.0686). Here every round lets the student act from an empty memory,
mixed with its teacher, with the teachers of *other* tasks, and with noise; the right teacher's action on every
visited observation is the target. The student sees what it will see later: observations, actions and rewards.

Lives longer than a round are cut into rounds (:mod:`icrl_agents.training.lives`): a row keeps its memory, the round
after begins with it, and so do the sequences that are trained on.

    K tasks, m rows a task, N = K m rows, E episodes a round, L steps, T token entries, A action entries
"""

import json
import math
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
from icrl_agents.tokens import TokenLayout
from icrl_agents.training.collection import make_rows
from icrl_agents.training.lives import begin_round, check_task_changes, end_round
from icrl_agents.training.lock import writing
from icrl_agents.training.manifest import Manifest
from icrl_agents.training.parallel import Processes
from icrl_agents.training.run_state import delete_rounds, round_file
from icrl_agents.training.sources.policies import sees_privileged
from icrl_agents.training.sources.rollouts import told
from icrl_agents.training.validation import COMPONENT_STD
from icrl_agents.training.windows import WindowBatch, token_statistics

LIVES = "lives."
"""What begins the names of arrays that the next round goes on from."""

LABELLED = 100
"""Steps that are labelled at once: bounds the memory of the teachers' hidden layers."""


class Teachers(Protocol):
    """The task-informed policies of K tasks, e.g. :class:`icrl_agents.training.sources.policies.SnapshotPolicies`.

    What they see has N_s entries: the observation, or behind it also what the environment calls privileged.
    """

    @property
    def seen_dim(self) -> int:
        """N_s."""

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Each policy on what it sees: ``[K, m, N_s]`` to ``[K, m, A]``."""

    def act_each(self, learners: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Policy ``learners[r]`` on what it sees, r: ``[R]`` and ``[R, N_s]`` to ``[R, A]``."""

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
        life_rounds: rounds that a row goes on in its task before it forgets and begins anew, at most; each life draws
            its own number. 1 begins every round with an empty memory.
        task_changes: probability that a row that goes on begins a round with what a row of another task remembers: as
            if its task had changed, and nobody had told it. It needs lives of several rounds.
        persistence: c; a step counts 1 + c exp(-d / (2 s^2)), d the mean squared difference of what was done the step
            before and what its label says, s :data:`icrl_agents.training.validation.COMPONENT_STD`. Who does not know
            in which of several tasks it is then goes on as it began; knowing is worth more than that.
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
    life_rounds: int = 1
    task_changes: float = 0.0
    persistence: float = 0.0
    teacher: tuple[float, ...] = (1.0, 0.6, 0.3, 0.1)
    wrong_teacher: float = 0.1
    noise: tuple[float, ...] = (0.0, 0.0, 0.1, 0.3)

    def __post_init__(self) -> None:
        for name in ("rows_per_task", "round_updates", "keep_rounds", "short_episodes", "life_rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.persistence < math.inf:
            raise ConfigError(f"persistence: expected a finite number of at least 0, got {self.persistence}")
        check_task_changes(self.task_changes, self.life_rounds)
        if not self.teacher or not self.noise or not all(0 <= noise < math.inf for noise in self.noise):
            raise ConfigError("teacher and noise: expected at least one value each, noise finite and not negative")
        for name, value in [("wrong_teacher", self.wrong_teacher), *(("teacher", p) for p in self.teacher)]:
            if not 0 <= value <= 1:
                raise ConfigError(f"{name}: expected probabilities, got {value}")


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
        processes: that share the run; the first lets the student act, all get the round.

    Raises:
        ConfigError: there are not as many teachers as tasks, or they see what the environment does not show.
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
        processes: Processes = Processes(),  # noqa: B008  frozen: one default is as good as many
    ) -> None:
        if len(teachers) != len(manifest.tasks):
            raise ConfigError(f"expected a teacher for each of {len(manifest.tasks)} tasks, got {len(teachers)}")
        self._config, self._manifest, self._agent_config = config, manifest, agent_config
        self._teachers, self._directory = teachers, directory
        self._processes = processes
        self._rounds = -(-updates // config.round_updates)
        self._batch_steps = batch_size * episodes * manifest.episode_steps
        self._episodes, self._seed = episodes, seed
        self._layout = TokenLayout(manifest.observation_dim, manifest.action_dim)
        self._env = make_rows(manifest.env_id, manifest.tasks, config.rows_per_task, options=manifest.env_options)
        self._privileged = sees_privileged(teachers.seen_dim, self._env.definition)
        self._kept: dict[int, dict[str, np.ndarray]] = {}
        self._lives: dict[str, np.ndarray] = {}
        self._random = np.random.default_rng([seed, 1])

    def prepare(self, update: int, model: InContextModel) -> bool:
        """Before an update, counted from 1: let the student act where a round is due.

        Returns:
            Whether there was a round; then the run has to save its state, because older rounds go.
        """
        number, within = divmod(update - 1, self._config.round_updates)
        if within or number in self._kept:  # a resumed run has it already; it was acted with other statistics
            return False
        self._random = np.random.default_rng([self._seed, 1, number])
        round_, self._lives = self._processes.from_first(lambda: self._act(number, model))
        if self._processes.first:
            whole = {**round_, **{f"{LIVES}{name}": array for name, array in self._lives.items()}}
            with writing(self._directory):
                write_atomically(round_file(self._directory, number), lambda path: save_file(whole, path))
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
        batch = {name: np.stack([r[name][row] for r, row in picked]) for name in newest}
        tokens, targets = batch.pop("tokens"), batch.pop("targets")
        return WindowBatch(tokens, targets, self._weights(tokens, targets), batch)

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
        for number in saved["rounds"]:
            path = round_file(self._directory, number)
            try:
                whole = load_file(path)
            except (OSError, SafetensorError) as error:
                raise DatasetError(f"{path}: a round of this run is missing or damaged: {error}") from None
            self._kept[number] = {n: array for n, array in whole.items() if not n.startswith(LIVES)}
            self._lives = {n.removeprefix(LIVES): array for n, array in whole.items() if n.startswith(LIVES)}

    def clean_up(self) -> None:
        """Delete the rounds, once the run is done."""
        delete_rounds(self._directory)

    def _weights(self, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """What each step counts ``[B, L]``, as ``persistence`` says; the first ones 1."""
        weights = np.ones(tokens.shape[:2], np.float32)
        if not self._config.persistence:
            return weights
        done = tokens[:, 1:, self._layout.previous_action]
        difference = np.square(done - targets[:, :-1]).mean(-1)
        weights[:, 1:] += self._config.persistence * np.exp(-difference / (2 * COMPONENT_STD**2))
        return weights

    def _act(self, number: int, model: InContextModel) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """One round: tokens ``[N, L, T]``, targets ``[N, L, A]`` and the memories it begins with; and how it ends."""
        short = number < self._config.short_fraction * self._rounds
        episodes = min(self._config.short_episodes, self._episodes) if short else self._episodes
        rows, steps = self._env.num_envs, episodes * self._manifest.episode_steps
        rng = np.random.default_rng([self._seed, 0, number])
        low, high = (
            np.asarray(bound, np.float32) for bound in (self._agent_config.action_low, self._agent_config.action_high)
        )
        student = InContextAgent(model, self._agent_config)
        config = self._config
        begun = begin_round(self._env, student, self._lives, config.life_rounds, rng, config.task_changes)
        observation = begun.observation
        seen = np.empty((rows, steps, self._teachers.seen_dim), np.float32)
        observations = seen[:, :, : self._manifest.observation_dim]
        actions = np.empty((rows, steps, self._manifest.action_dim), np.float32)
        rewards = np.empty((rows, steps), np.float32)
        ends = np.empty((2, rows, steps), bool)
        mode, noise, other = self._behaviour(number, rng)
        actors, taught = self._actors(mode, other)
        for t in range(steps):
            seen[:, t] = told(observation, self._env.privileged) if self._privileged else observation
            action = student.act(observation)
            action[taught] = self._teachers.act_each(actors[taught], seen[taught, t])
            action = np.clip(action + noise[:, None] * rng.standard_normal(action.shape), low, high).astype(np.float32)
            actions[:, t] = action
            observation, rewards[:, t], ends[0, :, t], ends[1, :, t], _ = self._env.step(action)
            student.observe(rewards[:, t], ends[0, :, t], ends[1, :, t], action=action)
            done = ends[0, :, t] | ends[1, :, t]
            if done.any():
                fresh = self._behaviour(number, rng)
                mode, noise, other = (
                    np.where(done, new, old) for new, old in zip(fresh, (mode, noise, other), strict=True)
                )
                actors, taught = self._actors(mode, other)
        tokens = model.layout.encode_history(observations, actions, rewards, ends[0] | ends[1])
        tokens[:, 0, model.layout.observation_dim :] = begun.pending
        round_ = {"tokens": tokens, "targets": self._labels(seen)}
        if self._config.life_rounds == 1:
            return round_, {}
        return round_ | begun.memory, end_round(self._env, student, observation, begun.rounds_left)

    def _behaviour(self, number: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Who acts in each row ``[N]`` (0 student, 1 its teacher, 2 another's), the noise, and the other task."""
        config, rows, tasks = self._config, self._env.num_envs, len(self._teachers)
        draw = rng.random(rows)
        mode = np.where(draw < config.teacher[min(number, len(config.teacher) - 1)], 1, 0)
        mode[rng.random(rows) < config.wrong_teacher] = 2
        own = np.repeat(np.arange(tasks), config.rows_per_task)
        other = (own + rng.integers(1, max(2, tasks), rows)) % tasks
        return mode, rng.choice(np.asarray(config.noise), rows), other

    def _actors(self, mode: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The teacher that acts in each row ``[N]``, and the rows in which one does."""
        own = np.repeat(np.arange(len(self._teachers)), self._config.rows_per_task)
        return np.where(mode == 1, own, other), np.flatnonzero(mode)

    def _labels(self, seen: np.ndarray) -> np.ndarray:
        """What each row's teacher would do ``[N, L, A]`` where it sees ``[N, L, N_s]``."""
        rows, steps, size = seen.shape
        by_task = seen.reshape(len(self._teachers), self._config.rows_per_task, steps, size)
        parts = [
            self._teachers.act(np.ascontiguousarray(by_task[:, :, t : t + LABELLED]).reshape(len(by_task), -1, size))
            for t in range(0, steps, LABELLED)
        ]
        whole = [part.reshape(*by_task.shape[:2], -1, part.shape[-1]) for part in parts]
        return np.concatenate(whole, axis=2).reshape(rows, steps, -1)

    def _forget(self, number: int) -> None:
        """Drop rounds that are too old; the file of the one before stays until the run's state is past it."""
        for old in [n for n in self._kept if n <= number - self._config.keep_rounds]:
            del self._kept[old]
        if self._processes.first:
            round_file(self._directory, number - self._config.keep_rounds - 1).unlink(missing_ok=True)
