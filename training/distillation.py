"""Algorithm distillation: train a model on learning histories to act as the algorithm that made them would.

    L(theta) = sum_n sum_t (a_t^n - f_theta(h_{t-1}^n, o_t^n))^2        (arXiv 2506.13892, equation 6)

A run is a directory. Killed or interrupted, the same call continues it, and what it ends with is what it
would have ended with: model, optimiser and sampler are saved at least every minute, and the noise of an
update depends on nothing but the seed and the update. The directory becomes a checkpoint with the first
validation, and from then on holds the best one so far.
"""

import json
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
from torch import nn

from icrl_agents.backbones.weights import load_backbone
from icrl_agents.config import AgentConfig, Head, ModelConfig, Tokenization, check_literals, to_dict
from icrl_agents.envs import split_names
from icrl_agents.errors import ConfigError, DatasetError
from icrl_agents.hub import save_checkpoint
from icrl_agents.model import InContextModel
from icrl_agents.training.circumstances import circumstances
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.interrupts import interrupts
from icrl_agents.training.lives import remembered
from icrl_agents.training.lock import DirectoryLock, writing
from icrl_agents.training.manifest import Manifest
from icrl_agents.training.on_policy import OnPolicyConfig, OnPolicySampler, Teachers
from icrl_agents.training.optimizers import make_optimizer
from icrl_agents.training.parallel import Processes, joined_processes, processes_of_environment
from icrl_agents.training.run_log import RunLog
from icrl_agents.training.run_state import RunState, claim_run, load_run, save_run
from icrl_agents.training.seeds import check_seed, purpose_seed
from icrl_agents.training.validation import (
    Rollout,
    Validator,
    action_loss,
    on_device,
    require_unseen,
    rollout_on_unseen_tasks,
)
from icrl_agents.training.windows import (
    FinalPolicy,
    KeptHistories,
    Target,
    WindowSampler,
    token_statistics,
)

SAVE_SECONDS = 45.0
"""A run's state is saved when this much time has passed since the last time."""


@dataclass(frozen=True)
class DistillationConfig:
    """Everything that decides what a training run ends with, beside its data.

    Attributes:
        name: of the agent, e.g. ``"reacher-goal-mamba"``.
        env_id: Gymnasium id of the environment; the data must be of it.
        backbone: registered name of the sequence model.
        backbone_options: fields of that backbone's config.
        tokenization: ``"transition"`` (the paper) or ``"element"`` (the original AD), see ``ModelConfig``.
        head: ``"deterministic"`` trains by squared error, ``"gaussian"`` by likelihood, ``"mixture"`` by that of
            several actions: who cannot tell yet which of them is right then does one, and not their mean.
        head_hidden: width of the head's hidden layers; 0 makes the head linear.
        head_layers: hidden layers of the head.
        head_components: actions that a mixture head predicts.
        mask_rewards: train the control agent that never sees a reward.
        target: what to predict: the ``"sampled"`` action (the paper), the ``"source_mean"`` it was drawn
            around, or the ``"final_policy"``'s action on the same observation.
        keep_every: k, one in k episodes of a history is kept.
        episodes: length of a training sequence, in episodes.
        from_start: probability that a sequence begins where its history begins.
        random_offset: keep other episodes, still one in k, each time a history is drawn.
        input_noise: standard deviation of the Gaussian noise on normalized tokens.
        updates: optimiser steps.
        batch_size: sequences an update.
        learning_rate: peak of AdamW's.
        muon_learning_rate: peak of Muon's, for the matrices between hidden layers; 0 leaves all to AdamW.
        warmup: updates over which both rise linearly, before they fall to 0 along a cosine.
        weight_decay: on matrices; not on norms, biases, A_log and D.
        betas: AdamW's two.
        clip_norm: largest norm of a gradient.
        val_fraction: share of the data's tasks whose histories are held out for the validation loss.
        val_episodes: episodes of each validation roll-out; 0 does without roll-outs.
        validate_every: updates between validations; the last update is always validated.
        seed: of the weights, the order of the data and the noise.
        init_backbone: folder of the backbone that training starts from, as ``icrl-agents import-mamba`` writes it; None
            draws the weights.
        on_policy: None distils the histories as they are; otherwise the student acts itself and the sources'
            final policies label what it meets, see :mod:`icrl_agents.training.on_policy`. The histories then only
            give tasks and teachers.
    """

    name: str
    env_id: str
    backbone: str = "mamba"
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    tokenization: Tokenization = "transition"
    head: Head = "deterministic"
    head_hidden: int = 128
    head_layers: int = 1
    head_components: int = 8
    mask_rewards: bool = False
    target: Target = "sampled"
    keep_every: int = 10
    episodes: int = 40
    from_start: float = 0.5
    random_offset: bool = False
    input_noise: float = 0.05
    updates: int = 600
    batch_size: int = 16
    learning_rate: float = 1e-3
    muon_learning_rate: float = 0.0
    warmup: int = 50
    weight_decay: float = 1e-4
    betas: tuple[float, ...] = (0.9, 0.95)
    clip_norm: float = 1.0
    val_fraction: float = 0.05
    val_episodes: int = 20
    validate_every: int = 100
    seed: int = 0
    init_backbone: str | None = None
    on_policy: OnPolicyConfig | None = None

    def __post_init__(self) -> None:
        at_least_one = ("updates", "batch_size", "episodes", "keep_every", "validate_every")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "muon_learning_rate", "weight_decay", "input_noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected a finite number, at least 0, got {getattr(self, name)}")
        if self.muon_learning_rate and not self.learning_rate:
            raise ConfigError("muon_learning_rate: AdamW, which has the other weights, needs a learning_rate as well")
        check_seed(self.seed)
        if self.val_episodes < 0:
            raise ConfigError(f"val_episodes: expected at least 0, got {self.val_episodes}")
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(f"val_fraction: expected at least 0 and less than 1, got {self.val_fraction}")
        check_literals(self)
        if self.on_policy is not None and (self.target != "final_policy" or self.val_fraction):
            raise ConfigError(
                "on-policy distillation predicts the final policy's action and holds no histories out: "
                'it wants target="final_policy" and val_fraction=0'
            )
        if not 0 < self.clip_norm < math.inf:
            raise ConfigError(f"clip_norm: expected a finite number above 0, got {self.clip_norm}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas: expected two numbers from 0 to below 1, got {self.betas}")


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves.

    Attributes:
        directory: the checkpoint.
        best_update: the update it is of.
        best_score: its validation score, see ``Validation.score``.
        seconds: time spent, over all the processes that worked on the run.
    """

    directory: Path
    best_update: int
    best_score: float
    seconds: float


def train(
    config: DistillationConfig,
    dataset_dir: str | Path,
    out_dir: str | Path,
    final_policy: FinalPolicy | None = None,
    *,
    teachers: Teachers | None = None,
    rollout: Rollout | None = None,
    tensorboard: bool | None = None,
    quiet: bool = False,
    device: str = "auto",
) -> TrainingResult:
    """Distil an agent, or go on with a run that was killed or interrupted.

    Started by ``torchrun`` or ``accelerate launch``, several processes share the work, see
    :mod:`icrl_agents.training.parallel`; how many is no part of the run and may change from one call to the next.

    Args:
        config: of the run; its batches are those of all processes together.
        dataset_dir: a complete dataset of learning histories.
        out_dir: of the run; becomes a checkpoint.
        final_policy: ``(task_index, observations [n, N_o]) -> actions [n, A]``, for that target.
        teachers: the sources' final policies, for on-policy distillation.
        rollout: validation roll-outs; None runs ``config.val_episodes`` episodes on the split's val tasks.
        tensorboard: write TensorBoard files into ``out_dir``; None writes them where TensorBoard is installed.
        quiet: no progress bar.
        device: ``"auto"`` is the GPU if there is one.

    Raises:
        ClusterError: another of the processes was lost, or the first met an error.
        ConfigError: ``out_dir`` holds another run, training diverged, or processes that cannot share a batch.
        DatasetError: the data is damaged or of another environment, holds tasks of val or test, or is of a split that
            has changed since; another process works on the run; or the disk is full.
        CheckpointError: the weights of ``config.init_backbone`` are damaged or do not fit.
        UnknownNameError: nobody registered the backbone.
        MissingExtraError: TensorBoard was asked for and is not installed.
        KeyboardInterrupt: after the state was saved.
    """
    processes_of_environment().check_batch(config.batch_size)
    dataset = HistoryDataset(dataset_dir)
    manifest = dataset.manifest
    dataset.verify()
    if manifest.env_id != config.env_id:
        raise DatasetError(f"{dataset_dir} is of {manifest.env_id}, the run of {config.env_id}")
    require_unseen(manifest)
    known = manifest.split in split_names(manifest.env_id)
    if rollout is None and config.val_episodes and known:
        rollout = rollout_on_unseen_tasks(manifest, config.val_episodes, config.seed)
    out_dir = Path(out_dir)
    with joined_processes() as processes, ExitStack() as held, torch.random.fork_rng():

        def claim() -> None:
            held.enter_context(DirectoryLock(out_dir))
            claim_run(out_dir, {"config": to_dict(config), "data": manifest.digest()})

        on = processes.device(device)
        processes.from_first(claim)
        run = _Run(config, dataset, out_dir, final_policy, teachers, rollout, on, processes)
        if not processes.first:
            return run.finish(None)
        with RunLog(out_dir, config.updates, run.state.update, tensorboard=tensorboard, quiet=quiet) as log:
            if not known and not quiet:
                log.say(f"split {manifest.split!r} is not known here: checkpoints are chosen without roll-outs")
            return run.finish(log)


class _Run:
    """One training run: all that :func:`train` builds from its arguments, and how far it has come."""

    def __init__(
        self,
        config: DistillationConfig,
        dataset: HistoryDataset,
        directory: Path,
        final_policy: FinalPolicy | None,
        teachers: Teachers | None,
        rollout: Rollout | None,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self._config, self._manifest, self._directory, self._device = (
            config,
            dataset.manifest,
            directory,
            device,
        )
        self._processes = processes
        self._agent_config = agent_config(config, dataset.manifest)
        kept, held_out = _split(config, dataset, self._agent_config, final_policy)
        length = config.episodes * dataset.manifest.episode_steps
        self._sampler: WindowSampler | OnPolicySampler
        if config.on_policy is None:
            self._sampler = WindowSampler(
                kept,
                config.batch_size,
                length,
                from_start=config.from_start,
                random_offset=config.random_offset,
                seed=purpose_seed(config.seed, "windows"),
            )
        elif teachers is None:
            raise ConfigError("on-policy distillation needs the final policy of every source")
        else:
            self._sampler = OnPolicySampler(
                config.on_policy,
                dataset.manifest,
                self._agent_config,
                teachers,
                directory,
                updates=config.updates,
                batch_size=config.batch_size,
                episodes=config.episodes,
                seed=purpose_seed(config.seed, "rounds"),
                processes=processes,
            )
        self._validate = Validator(
            held_out,
            length,
            config.batch_size,
            rollout if config.val_episodes else None,
            self._agent_config,
            device,
        )
        torch.manual_seed(purpose_seed(config.seed, "weights"))
        self._model = InContextModel(self._agent_config.model)
        if config.init_backbone is not None:
            start_from(config.init_backbone, self._model)
        if config.on_policy is None:  # else the first round gives them
            mean, std = token_statistics([kept.load(i).tokens for i in range(len(kept))], kept.layout)
            self._model.token_mean.copy_(torch.from_numpy(mean))
            self._model.token_std.copy_(torch.from_numpy(std))
        self._model.to(device)
        self._optimizer = make_optimizer(
            self._model,
            learning_rate=config.learning_rate,
            muon_learning_rate=config.muon_learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        self.state = RunState(update=0, sampler=self._sampler.state())
        saved = load_run(directory, self._model, self._optimizer)
        if saved is not None:
            self.state = saved
            if saved.update < config.updates:
                self._sampler.restore(saved.sampler)
        processes.check_same("the data or how far the run has come", [self._manifest.digest(), self.state.update])
        processes.give_all([*self._model.state_dict().values()])  # machines may differ in a last bit

    def finish(self, log: RunLog | None) -> TrainingResult:
        """Do the updates that are left; the first process has a log."""
        began = saved_at = time.monotonic()
        before = self.state.seconds
        stopping = False
        with interrupts() as interrupted:
            while self.state.update < self._config.updates:
                update = self.state.update + 1
                if self._sampler.prepare(update, self._model):
                    self._save()
                metrics = self._update(update)
                if log is not None:
                    note = f"loss {metrics['loss']:.4f}  {metrics['tokens_per_second']:,.0f} tokens/s"
                    log.update(update, metrics, note)
                self.state = replace(self.state, update=update, seconds=before + time.monotonic() - began)
                last = update == self._config.updates
                if log is not None and (last or update % self._config.validate_every == 0):
                    self._select(log)
                    saved_at = -math.inf  # what was chosen and what is known of it go together
                stopping = self._processes.any(bool(interrupted))
                if last or stopping or time.monotonic() - saved_at > SAVE_SECONDS:
                    self._save()
                    saved_at = time.monotonic()
                if stopping and not last:
                    text = f"saved after update {update} of {self._config.updates}; the same command goes on"
                    if log is not None:
                        log.say(text)
                    raise KeyboardInterrupt(text)
        self.state = self._processes.from_first(lambda: self.state)  # the others do not validate
        if self._processes.first:
            self._sampler.clean_up()
        if stopping:
            raise KeyboardInterrupt(f"all {self._config.updates} updates are done and saved")
        assert self.state.best_score is not None
        return TrainingResult(self._directory, self.state.best_update, self.state.best_score, self.state.seconds)

    def _update(self, update: int) -> dict[str, float]:
        """One optimiser step; its numbers."""
        began = time.perf_counter()
        config = self._config
        batch = self._sampler.sample()
        own, whole = self._processes.rows(len(batch.weights)), float(batch.weights.sum())
        share = batch.rows(own)
        tokens, targets, weights = on_device(share, self._device)
        rate = learning_rate(config, update)
        self._optimizer.set_learning_rate(rate)
        torch.manual_seed(purpose_seed(config.seed, "noise", update))
        noise = None  # of the whole batch, so that a row's is the same on however many processes
        if config.input_noise:
            noise = config.input_noise * torch.randn(batch.tokens.shape, device=self._device)[own]
        self._model.train()
        prediction, _ = self._model(tokens, remembered(self._model, share.memory), input_noise=noise)
        # A process's share of the mean over the steps of the whole batch
        loss = action_loss(prediction, targets, weights) * (float(share.weights.sum()) / whole)
        self._optimizer.zero_grad()
        loss.backward()
        total = self._processes.add_up(self._model.parameters(), loss.item())
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), config.clip_norm)
        metrics = {"loss": total, "gradient_norm": norm.item(), "learning_rate": rate}
        if not all(map(math.isfinite, metrics.values())):
            muon = f", muon_learning_rate than {config.muon_learning_rate}" if config.muon_learning_rate else ""
            raise ConfigError(
                f"training diverged at update {update}: {metrics}. Try a smaller learning_rate than "
                f"{config.learning_rate}{muon} or more warmup than {config.warmup}, in another directory"
            )
        self._optimizer.step()
        return {**metrics, "tokens_per_second": np.count_nonzero(batch.weights) / (time.perf_counter() - began)}

    def _select(self, log: RunLog) -> None:
        """Validate, and keep the checkpoint if none before was better."""
        found = self._validate(self._model)
        log.validation(self.state.update, found)
        if self.state.best_score is None or found.score >= self.state.best_score:
            self.state = replace(self.state, best_update=self.state.update, best_score=found.score)
            self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        training = {
            "recipe": "algorithm distillation" if self._config.on_policy is None else "on-policy distillation",
            "config": to_dict(self._config),
            "data": self._manifest.identity() | {"steps": self._manifest.progress.steps},
            "data_digest": self._manifest.digest(),
            "update": self.state.best_update,
            "val_score": self.state.best_score,
            "seconds": round(self.state.seconds, 1),
            "processes": self._processes.count,
            **circumstances(self._model, self._device),
        }
        with writing(self._directory):
            save_checkpoint(self._directory, self._model, self._agent_config, training=training)

    def _save(self) -> None:
        if not self._processes.first:
            return
        self.state = replace(self.state, sampler=self._sampler.state())
        save_run(self._directory, self.state, self._model, self._optimizer)


def agent_config(config: DistillationConfig, manifest: Manifest) -> AgentConfig:
    """What the checkpoints of a run say about themselves."""
    env = gymnasium.make(config.env_id, **manifest.env_options)
    space = env.action_space
    env.close()
    if not isinstance(space, gymnasium.spaces.Box) or space.shape != (manifest.action_dim,):
        raise DatasetError(f"the data has actions of {manifest.action_dim} entries, {config.env_id} has {space}")
    model = ModelConfig(
        observation_dim=manifest.observation_dim,
        action_dim=manifest.action_dim,
        backbone=config.backbone,
        backbone_options=config.backbone_options,
        tokenization=config.tokenization,
        head=config.head,
        head_hidden=config.head_hidden,
        head_layers=config.head_layers,
        head_components=config.head_components,
        mask_rewards=config.mask_rewards,
    )
    return AgentConfig(
        name=config.name,
        env_id=config.env_id,
        env_options=manifest.env_options,
        action_low=tuple(space.low.tolist()),
        action_high=tuple(space.high.tolist()),
        episode_steps=manifest.episode_steps,
        training_episodes=config.episodes,
        split=manifest.split,
        split_hash=manifest.split_hash,
        mujoco_version=manifest.mujoco_version if config.on_policy is None else mujoco.__version__,
        model=model,
    )


def _split(
    config: DistillationConfig, dataset: HistoryDataset, agent: AgentConfig, final_policy: FinalPolicy | None
) -> tuple[KeptHistories, KeptHistories]:
    """The histories to train on, and those of some tasks held out. At least one task is trained on."""
    texts = [json.dumps(dict(task), sort_keys=True) for task in dataset.manifest.tasks]
    tasks = list(dict.fromkeys(texts))  # what was imported may name one several times
    count = min(math.ceil(config.val_fraction * len(tasks)), len(tasks) - 1)
    order = np.random.default_rng(purpose_seed(config.seed, "held out")).permutation(len(tasks))
    held_out = {tasks[index] for index in order[:count]}
    parts: tuple[list[int], list[int]] = ([], [])
    for h in range(len(dataset)):
        parts[texts[dataset.task_index(h)] in held_out].append(h)
    low, high = np.asarray(agent.action_low), np.asarray(agent.action_high)
    # On-policy distillation asks its teachers, not these.
    target = config.target if config.on_policy is None else "sampled"
    train_part, val_part = (
        KeptHistories(dataset, part, config.keep_every, target, low, high, final_policy) for part in parts
    )
    return train_part, val_part


def start_from(directory: str | Path, model: InContextModel) -> None:
    """Give a model the weights of a backbone on its own.

    Raises:
        ConfigError: the directory holds none, or one of another kind or shape than the model's.
        CheckpointError: its weights are damaged.
    """
    backbone, own = load_backbone(directory), model.backbone
    ours, theirs = ({name: list(w.shape) for name, w in b.state_dict().items()} for b in (own, backbone))
    if type(backbone) is not type(own) or ours != theirs:
        raise ConfigError(
            f"{directory} holds a {type(backbone).__name__} that is not shaped like the run's {type(own).__name__} "
            f"{dict(model.config.backbone_options)}"
        )
    own.load_state_dict(backbone.state_dict())


def learning_rate(config: DistillationConfig, update: int) -> float:
    """The learning rate of an update, from 1: a linear rise over ``warmup`` updates, then a cosine to 0."""
    if update <= config.warmup:
        return config.learning_rate * update / config.warmup
    part = (update - config.warmup) / max(1, config.updates - config.warmup + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * part))
