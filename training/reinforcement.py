"""Reinforcement fine-tuning: an agent that was distilled learns from reward itself what no teacher showed it.

Its teacher was told the task and never had to act while it was unsure of it. Here the agent acts in the training tasks,
by its mean and noise, and proximal policy optimisation (PPO, Schulman et al. 2017, arXiv 1707.06347) moves it, through
its memory (as RL^2, Duan et al. 2016, arXiv 1611.02779), towards what paid. The critic is told what the agent is not:
the task, what the environment calls privileged, and how much of the episode is left (asymmetric actor-critic, Pinto et
al. 2018, arXiv 1710.06542; time limits: Pardo et al. 2018, arXiv 1712.00378). It serves training alone.

Of a mixture head also which of its actions is done is drawn, and what makes it choose is moved, too.

An action is credited with what its own episode brings. How the agent explores for later episodes stays as distillation
made it.

    N rows, one a task; L steps a round; N_o observation entries, C entries that the critic sees, T token entries, A
    action entries
"""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import mujoco
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import icrl_agents.envs  # noqa: F401  registers the environments
from icrl_agents.atomic import write_atomically
from icrl_agents.config import AgentConfig, to_dict
from icrl_agents.envs import Task, task_split
from icrl_agents.errors import ConfigError, DatasetError, NotFiniteError
from icrl_agents.hub import WEIGHTS_FILE, load_checkpoint, load_training_record, resolve, save_checkpoint
from icrl_agents.model import InContextModel
from icrl_agents.training.circumstances import circumstances
from icrl_agents.training.collection import make_rows, tasks_of_subset
from icrl_agents.training.critic import AdvantagesBy, Critic, advantages, standardised
from icrl_agents.training.experience import Experience, Rows, log_prob
from icrl_agents.training.interrupts import interrupts
from icrl_agents.training.lives import check_task_changes, remembered
from icrl_agents.training.lock import DirectoryLock, writing
from icrl_agents.training.optimizers import Optimizers
from icrl_agents.training.parallel import processes_of_environment
from icrl_agents.training.run_log import RunLog
from icrl_agents.training.run_state import (
    IDENTITY_FILE,
    RunState,
    claim_run,
    delete_rounds,
    load_run,
    require_free_for_run,
    round_file,
    save_run,
)
from icrl_agents.training.seeds import check_seed, purpose_seed
from icrl_agents.training.validation import Rollout, Validation, mean_returns, require_unseen, rollout_on_unseen_tasks

RECIPE = "reinforcement fine-tuning"


@dataclass(frozen=True)
class ReinforcementConfig:
    """Everything that decides what fine-tuning ends with, beside the agent that it begins with.

    Attributes:
        name: of the agent that it makes.
        env_id: Gymnasium id.
        split: named task split; validation is on its val tasks, and on ``more_val_tasks`` others.
        subset: training tasks: "train", "sampled:N" for N of the distribution, drawn by the seed, or several joined
            by "+". One row each.
        rounds: each a roll-out and what is learned from it.
        episodes: of a round. An episode that ends early gives way to the next: a round has ``episodes`` times the
            horizon steps.
        life_rounds: rounds that a row goes on in its task before it forgets and begins anew, at most; each life draws
            its own number.
        task_changes: probability that a row that goes on begins a round with what a row of another task remembers, as
            in :class:`icrl_agents.training.on_policy.OnPolicyConfig`. It needs lives of several rounds.
        critic_rounds: the first rounds, from which only the critic learns.
        epochs: passes of the agent over a round.
        batch_size: rows of a gradient step; rows that are too few for one more are shared out.
        learning_rate: peak of Adam's.
        warmup_rounds: of the agent's, over which it rises linearly before it falls to 0: Adam's first steps are as
            long as its later ones, and the agent has something to lose.
        betas: Adam's two.
        clip_norm: largest norm of a gradient.
        clip_range: of the probability ratio.
        target_kl: a round's learning ends where a batch's divergence from the policy that acted is more than 1.5 times
            this.
        noise: standard deviation of the actions around the agent's, in their units, in the first round.
        noise_decay: what is left of it in the last round, which it falls to geometrically; 1 keeps it. An agent may
            come to rely on noise that stays, and get stuck when it acts without.
        average_rounds: what is validated and kept is an exponential average of the agent's weights over about so many
            rounds; 1 is the last round's alone.
        gamma: discount.
        gae_lambda: of generalised advantage estimation.
        advantages_by: ``"task"`` or ``"round"``, of which they are centred and scaled.
        critic_hidden: widths of the critic's hidden layers.
        critic_learning_rate: of Adam.
        critic_epochs: passes of the critic over a round; three times as many over the first ``critic_rounds``.
        critic_batch_size: steps of one of its gradient steps.
        val_episodes: episodes of each validation roll-out.
        more_val_tasks: drawn from the distribution and not trained on, beside the split's val tasks, which may be too
            few to tell rounds apart.
        validate_every: rounds between validations; the last round is always validated.
        seed: of everything.
    """

    name: str
    env_id: str
    split: str = "paper"
    subset: str = "train"
    rounds: int = 100
    episodes: int = 5
    life_rounds: int = 8
    task_changes: float = 0.0
    critic_rounds: int = 3
    epochs: int = 2
    batch_size: int = 32
    learning_rate: float = 3e-4
    warmup_rounds: int = 5
    betas: tuple[float, ...] = (0.9, 0.99)
    clip_norm: float = 0.5
    clip_range: float = 0.2
    target_kl: float = 0.03
    noise: float = 0.1
    noise_decay: float = 1.0
    average_rounds: int = 1
    gamma: float = 0.98
    gae_lambda: float = 0.95
    advantages_by: AdvantagesBy = "task"
    critic_hidden: tuple[int, ...] = (256, 256)
    critic_learning_rate: float = 1e-3
    critic_epochs: int = 3
    critic_batch_size: int = 4_096
    val_episodes: int = 40
    more_val_tasks: int = 0
    validate_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        whole = ("rounds", "episodes", "life_rounds", "epochs", "batch_size", "critic_epochs", "critic_batch_size")
        for name in (*whole, "average_rounds", "val_episodes", "validate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "critic_learning_rate", "clip_norm", "clip_range", "target_kl", "noise"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected a finite number above 0, got {getattr(self, name)}")
        check_task_changes(self.task_changes, self.life_rounds)
        if not 0 < self.noise_decay <= 1:
            raise ConfigError(f"noise_decay: expected a number above 0 and at most 1, got {self.noise_decay}")
        if self.advantages_by not in get_args(AdvantagesBy):
            raise ConfigError(f"advantages_by: expected one of {get_args(AdvantagesBy)}, got {self.advantages_by!r}")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: expected 0 to 1, got {getattr(self, name)}")
        for name in ("warmup_rounds", "more_val_tasks"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if not 0 <= self.critic_rounds < self.rounds:
            raise ConfigError(
                f"critic_rounds: expected at least 0 and fewer than the {self.rounds} rounds, got {self.critic_rounds}"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas: expected two numbers from 0 to below 1, got {self.betas}")
        if min(self.critic_hidden, default=1) < 1:
            raise ConfigError(f"critic_hidden: expected widths of at least 1, got {self.critic_hidden}")
        check_seed(self.seed)


@dataclass(frozen=True)
class ReinforcementResult:
    """What a finished run leaves.

    Attributes:
        directory: the checkpoint.
        best_round: the round it is of; 0 is the agent that it began with.
        best_score: its mean return in the last quarter of the validation episodes.
        seconds: time spent, over all the calls that worked on the run.
    """

    directory: Path
    best_round: int
    best_score: float
    seconds: float


@dataclass(frozen=True)
class TrainingTasks:
    """What is trained on: the other tasks of the split are unseen."""

    env_id: str
    split: str
    split_hash: str
    subset: str
    tasks: Sequence[Task]


def finetune(
    config: ReinforcementConfig,
    start: str | Path,
    out_dir: str | Path,
    *,
    rollout: Rollout | None = None,
    tensorboard: bool | None = None,
    quiet: bool = False,
    device: str = "auto",
) -> ReinforcementResult:
    """Fine-tune an agent by reinforcement, or go on with a run that was killed or interrupted.

    The run's directory becomes a checkpoint at once, of the agent as it was, and from then on holds the best one by
    validation. What a run saves after every round is all that the next depends on: an interrupted run ends as it would
    have ended.

    Args:
        config: of the run.
        start: directory, bundled name or Hub id of the agent; its head is not Gaussian.
        out_dir: of the run; becomes a checkpoint.
        rollout: validation roll-outs; None runs ``config.val_episodes`` episodes on the split's val tasks and
            ``config.more_val_tasks`` others.
        tensorboard: write TensorBoard files into ``out_dir``; None writes them where TensorBoard is installed.
        quiet: no progress bar.
        device: ``"auto"`` is the GPU if there is one.

    Raises:
        ConfigError: ``out_dir`` holds another run, the agent samples its actions or is of another environment or split,
            training diverged, or it was started as one of several processes.
        UnknownNameError: there is no such agent.
        CheckpointError: its files are damaged.
        DatasetError: another process works on the run, its files are damaged, validation tasks would be trained on, or
            the disk is full.
        MissingExtraError: TensorBoard was asked for and is not installed.
        KeyboardInterrupt: after the state was saved.
    """
    processes = processes_of_environment()
    if processes.count > 1:
        raise ConfigError(f"fine-tuning is the work of one process, this is one of {processes.count}")
    directory = resolve(start)
    model, agent = load_checkpoint(directory)
    _check(agent, config)
    on = processes.device(device)
    tasks = _training_tasks(config)
    require_unseen(tasks)
    if rollout is None:
        rollout = rollout_on_unseen_tasks(tasks, config.val_episodes, config.seed, config.more_val_tasks)
    out_dir = Path(out_dir)
    with ExitStack() as held, torch.random.fork_rng():
        held.enter_context(DirectoryLock(out_dir))
        digest = sha256((directory / WEIGHTS_FILE).read_bytes()).hexdigest()
        claim_run(out_dir, {"config": to_dict(config), "start": digest, "split_hash": tasks.split_hash})
        start_of = {"name": agent.name, "sha256": digest, "training": load_training_record(directory) or {}}
        run = _Run(config, model, agent, start_of, tasks, out_dir, rollout, on)
        done = -1 if run.state.best_score is None else run.state.update  # the agent as it was is round 0
        with RunLog(out_dir, config.rounds, done, tensorboard=tensorboard, quiet=quiet) as log:
            return run.finish(log)


def require_finetuning(directory: Path) -> None:
    """Raise where a directory already holds what :func:`finetune` would not go on with, whatever its agent.

    Raises:
        ConfigError: it holds a run of another kind, or what is not of a run.
    """
    path = directory / IDENTITY_FILE
    if path.is_file() and '"start"' not in path.read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(f"{directory} holds a run that is not one of fine-tuning; choose another directory")
    require_free_for_run(directory)


def _check(agent: AgentConfig, config: ReinforcementConfig) -> None:
    if agent.env_id != config.env_id:
        raise ConfigError(f"{agent.name} is of {agent.env_id}, the run of {config.env_id}")
    if agent.split != config.split:
        raise ConfigError(
            f"{agent.name} was made on split {agent.split!r}, the run is of {config.split!r}, whose other tasks it may "
            "have seen"
        )
    content = task_split(config.env_id, config.split).content_hash
    if agent.split_hash != content:
        raise ConfigError(
            f"{agent.name} was made on split {config.split!r} with content {agent.split_hash}, which is {content} now: "
            "it may have seen tasks that are held out"
        )
    if agent.model.head == "gaussian":
        raise ConfigError(f"{agent.name} has a gaussian head; fine-tuning is for a deterministic or a mixture one")


def _training_tasks(config: ReinforcementConfig) -> TrainingTasks:
    split = task_split(config.env_id, config.split)
    tasks = tasks_of_subset(split, config.subset, config.seed)
    return TrainingTasks(config.env_id, split.name, split.content_hash, config.subset, tasks)


class _Run:
    """One run: all that :func:`finetune` builds from its arguments, and how far it has come."""

    def __init__(
        self,
        config: ReinforcementConfig,
        model: InContextModel,
        agent: AgentConfig,
        start: Mapping[str, Any],
        tasks: TrainingTasks,
        directory: Path,
        rollout: Rollout,
        device: torch.device,
    ) -> None:
        self._config, self._directory, self._rollout, self._device = config, directory, rollout, device
        self._model, self._start, self._tasks = model, start, tasks
        self._agent_config = replace(
            agent,
            name=config.name,
            training_episodes=max(agent.training_episodes, config.episodes),
            split_hash=tasks.split_hash,
            mujoco_version=mujoco.__version__,
        )
        self._rows = Rows(
            make_rows(config.env_id, tasks.tasks, 1, options=agent.env_options),
            tasks.tasks,
            self._agent_config,
            episodes=config.episodes,
            life_rounds=config.life_rounds,
            task_changes=config.task_changes,
        )
        torch.manual_seed(purpose_seed(config.seed, "critic"))
        self._critic = Critic(self._rows.seen_dim, config.critic_hidden).to(device)
        self._model.to(device)
        average = get_ema_multi_avg_fn(1 - 1 / config.average_rounds)
        self._average = AveragedModel(self._model, multi_avg_fn=average)
        self._networks = nn.ModuleDict({"agent": self._model, "critic": self._critic, "average": self._average})
        betas = (config.betas[0], config.betas[1])
        self._adam = torch.optim.Adam(self._model.parameters(), lr=config.learning_rate, betas=betas)
        self._critic_adam = torch.optim.Adam(self._critic.parameters(), lr=config.critic_learning_rate)
        self._optimizers = Optimizers(self._adam, self._critic_adam)
        self._lives: dict[str, np.ndarray] = {}
        self.state = RunState(update=0, sampler="")
        saved = load_run(directory, self._networks, self._optimizers)
        if saved is not None:
            self.state = saved
            if saved.update < config.rounds:
                self._lives = self._load_lives()

    def finish(self, log: RunLog) -> ReinforcementResult:
        """Do the rounds that are left."""
        began, before = time.monotonic(), self.state.seconds
        if self.state.best_score is None:
            self._select(log)
            self._save()
        with interrupts() as interrupted:
            while self.state.update < self._config.rounds:
                number = self.state.update
                done = number + 1
                try:
                    metrics = self._round(number)
                    log.update(done, metrics, f"return {metrics['return']:.2f}")
                    self.state = replace(self.state, update=done, seconds=before + time.monotonic() - began)
                    if done == self._config.rounds or done % self._config.validate_every == 0:
                        self._select(log)
                except NotFiniteError as error:  # actions or weights
                    raise self._diverged(number, str(error)) from error
                self._save()
                if interrupted and done < self._config.rounds:
                    text = f"saved after round {done} of {self._config.rounds}; the same command goes on"
                    log.say(text)
                    raise KeyboardInterrupt(text)
        delete_rounds(self._directory)
        if interrupted:
            raise KeyboardInterrupt(f"all {self._config.rounds} rounds are done and saved")
        assert self.state.best_score is not None
        return ReinforcementResult(self._directory, self.state.best_update, self.state.best_score, self.state.seconds)

    # One round

    def _round(self, number: int) -> dict[str, float]:
        """Act, then learn; what is told of it."""
        began = time.perf_counter()
        config = self._config
        experience, self._lives = self._act(number)
        seen = torch.from_numpy(experience.seen).to(self._device)
        if number == 0:
            zeros = np.zeros(experience.seen.shape[:2], np.float32)
            to_go = advantages(experience.rewards, zeros, experience.done, config.gamma, 1.0)
            self._critic.normalise(seen[:, :-1].flatten(0, 1), torch.from_numpy(to_go).to(seen).flatten())
        with torch.no_grad():
            values = self._critic(seen).cpu().numpy()
        gained = advantages(experience.rewards, values, experience.done, config.gamma, config.gae_lambda)
        returns = gained + values[:, :-1]
        rng = np.random.default_rng([config.seed, 1, number])
        metrics = {
            "explained_variance": float(1 - np.var(returns - values[:, :-1]) / max(np.var(returns), 1e-12)),
            "critic_loss": self._teach_critic(number, seen[:, :-1], torch.from_numpy(returns).to(seen), rng),
        }
        if number >= config.critic_rounds:
            metrics |= self._improve(number, experience, gained, rng)
            self._average.update_parameters(self._model)
        if not all(map(math.isfinite, metrics.values())):
            raise self._diverged(number, f"{metrics}")
        speed = experience.rewards.size / (time.perf_counter() - began)
        return {"return": experience.mean_return, **metrics, "steps_per_second": speed}

    def _diverged(self, number: int, how: str) -> ConfigError:
        return ConfigError(
            f"fine-tuning diverged in round {number + 1}: {how}. Try a smaller learning_rate than "
            f"{self._config.learning_rate}, in another directory"
        )

    def _act(self, number: int) -> tuple[Experience, dict[str, np.ndarray]]:
        """A round of the agent's own experience, and where it ends."""
        rng = np.random.default_rng([self._config.seed, 0, number])
        return self._rows.act(self._model, self._lives, noise_of_round(self._config, number), rng)

    def _teach_critic(self, number: int, seen: Tensor, returns: Tensor, rng: np.random.Generator) -> float:
        """Fit the critic to a round; the mean loss of the last pass."""
        config = self._config
        seen, returns = seen.flatten(0, 1), returns.flatten()
        losses: list[float] = []
        for _ in range(config.critic_epochs * (3 if number < config.critic_rounds else 1)):
            losses = []
            for batch in torch.from_numpy(rng.permutation(len(returns))).split(config.critic_batch_size):
                loss = self._critic.loss(seen[batch], returns[batch])
                self._critic_adam.zero_grad()
                loss.backward()
                self._critic_adam.step()
                losses.append(loss.item())
        return float(np.mean(losses))

    def _improve(
        self, number: int, experience: Experience, gained: np.ndarray, rng: np.random.Generator
    ) -> dict[str, float]:
        """PPO's clipped objective over whole sequences, each from what the agent remembered at its beginning."""
        config = self._config
        rate = learning_rate(config, number)
        self._adam.param_groups[0]["lr"] = rate
        scaled = standardised(gained, config.advantages_by)
        tokens, actions, before, gains = (
            torch.from_numpy(x).to(self._device, torch.float32)
            for x in (experience.tokens, experience.actions, experience.log_probs, scaled)
        )
        noise = noise_of_round(config, number)
        self._model.train()
        told: list[tuple[float, float, float]] = []
        taken = 0
        for _ in range(config.epochs):
            for batch in np.array_split(rng.permutation(len(tokens)), max(1, len(tokens) // config.batch_size)):
                memory = {name: part[batch] for name, part in experience.memory.items()}
                prediction = self._model(tokens[batch], remembered(self._model, memory))[0]
                difference = log_prob(prediction, actions[batch], noise) - before[batch]
                ratio = difference.exp()
                clipped = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
                loss = -torch.min(ratio * gains[batch], clipped * gains[batch]).mean()
                self._adam.zero_grad()
                loss.backward()
                norm = nn.utils.clip_grad_norm_(self._model.parameters(), config.clip_norm)
                kl = (ratio.detach() - 1 - difference.detach()).mean()
                told.append((loss.item(), kl.item(), norm.item()))
                if not math.isfinite(sum(told[-1])) or told[-1][1] > 1.5 * config.target_kl:
                    break
                self._adam.step()
                taken += 1
            else:
                continue
            break
        losses, divergences, norms = zip(*told, strict=True)
        return {
            "loss": float(np.mean(losses)),
            "largest_kl": max(divergences),
            "gradient_norm": float(np.mean(norms)),
            "learning_rate": rate,
            "noise": noise,
            "gradient_steps": float(taken),
        }

    # Keeping

    def _select(self, log: RunLog) -> None:
        """Validate, and keep the checkpoint if none before was better."""
        model = copy.deepcopy(self._average.module).eval()  # what it caches while it acts must not meet the next update
        assert isinstance(model, InContextModel)
        found = Validation(None, mean_returns(self._rollout, model, self._agent_config))
        log.validation(self.state.update, found)
        if self.state.best_score is None or found.score >= self.state.best_score:
            self.state = replace(self.state, best_update=self.state.update, best_score=found.score)
            recipes = [self._start["training"].get("recipe"), RECIPE if self.state.update else None]
            training = {
                "recipe": " + ".join(str(recipe) for recipe in recipes if recipe),
                "config": to_dict(self._config),
                "start": self._start,
                "split_hash": self._tasks.split_hash,
                "update": self.state.best_update,
                "val_score": self.state.best_score,
                "seconds": round(self.state.seconds, 1),
                **circumstances(self._model, self._device),
            }
            with writing(self._directory):
                save_checkpoint(self._directory, model, self._agent_config, training=training)

    def _save(self) -> None:
        """Lives first: no kill leaves a state whose lives are not there."""
        path = round_file(self._directory, self.state.update)
        with writing(self._directory):
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, lambda part: save_file(self._lives, part))
        save_run(self._directory, self.state, self._networks, self._optimizers)
        round_file(self._directory, self.state.update - 1).unlink(missing_ok=True)

    def _load_lives(self) -> dict[str, np.ndarray]:
        path = round_file(self._directory, self.state.update)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise DatasetError(f"{path}: the lives of this run are missing or damaged: {error}") from None


def learning_rate(config: ReinforcementConfig, number: int) -> float:
    """The agent's learning rate in a round, from 0: a linear rise over ``warmup_rounds``, then a linear fall to 0."""
    own, rounds = number - config.critic_rounds, config.rounds - config.critic_rounds
    if own < 0:
        return 0.0
    warmup = min(config.warmup_rounds, rounds)
    return config.learning_rate * (
        (own + 1) / (warmup + 1) if own < warmup else 1 - (own - warmup) / max(1, rounds - warmup)
    )


def noise_of_round(config: ReinforcementConfig, number: int) -> float:
    """The deviation of the actions in a round, from 0."""
    return float(config.noise * config.noise_decay ** (number / max(1, config.rounds - 1)))
