"""How good a model is while it trains: its loss on held-out histories, and what it earns on unseen tasks."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from icrl_agents.agent import InContextAgent
from icrl_agents.config import AgentConfig
from icrl_agents.envs import Task, env_definition, split_names, task_split
from icrl_agents.errors import DatasetError
from icrl_agents.model import ActionPrediction, InContextModel
from icrl_agents.training.seeds import purpose_seed
from icrl_agents.training.windows import KeptHistories, TokenHistory, WindowBatch, stack_windows

Rollout = Callable[[InContextAgent], np.ndarray]
"""Lets an agent learn tasks it has not seen; the return of each episode ``[tasks, episodes]``."""


@dataclass(frozen=True)
class Validation:
    """What one validation found.

    Attributes:
        loss: mean over the steps of the held-out histories; None without any.
        returns: mean over the tasks of each episode's return ``[episodes]``; None without roll-outs.
    """

    loss: float | None
    returns: tuple[float, ...] | None

    @property
    def score(self) -> float:
        """What selects a checkpoint, higher is better.

        The mean return of the last quarter of the episodes, where an agent has learned its task; without
        roll-outs the negative loss; without either 0, so that no checkpoint is better than a later one.
        """
        if self.returns:
            return float(np.mean(self.returns[-max(1, len(self.returns) // 4) :]))
        return 0.0 if self.loss is None else -self.loss


COMPONENT_STD = 0.3
"""Of the actions around each that a mixture head predicts, in the action's units."""


def action_loss(prediction: ActionPrediction, targets: Tensor, weights: Tensor) -> Tensor:
    """What is minimised, averaged over the steps, by what each counts, and the action's entries.

    Deterministic head: squared error, equation 6 of the paper. Gaussian head: negative log-likelihood. Mixture head:
    that of Gaussians around its actions (Bishop 1994, "Mixture density networks") whose standard deviation is
    :data:`COMPONENT_STD`, in units in which it is the squared error where one action is certain.

    Args:
        prediction: ``[B, L, A]``.
        targets: ``[B, L, A]``.
        weights: ``[B, L]``.
    """
    if prediction.components is not None and prediction.logits is not None:
        distance = (prediction.components - targets[..., None, :]).square().sum(-1)  # [B, L, K]
        scale = 2 * COMPONENT_STD**2
        likelihood = torch.logsumexp(prediction.logits.log_softmax(-1) - distance / scale, -1)
        each = -likelihood * scale / targets.shape[-1]
    elif prediction.log_std is None:
        each = (prediction.mean - targets).square().mean(-1)
    else:
        variance = (2 * prediction.log_std).exp()
        each = F.gaussian_nll_loss(prediction.mean, targets, variance, full=True, eps=0.0, reduction="none").mean(-1)
    return (each * weights).sum() / weights.sum()


class Validator:
    """Validates a model as often as asked, always on the same data.

    Args:
        held_out: histories that are not trained on.
        length: steps of each, from its start, that the loss looks at.
        batch_size: histories at once.
        rollout: how to find the returns; None finds none.
        agent_config: of the agent for the roll-outs.
        device: of the model.
    """

    def __init__(
        self,
        held_out: KeptHistories,
        length: int,
        batch_size: int,
        rollout: Rollout | None,
        agent_config: AgentConfig,
        device: torch.device,
    ) -> None:
        windows = [_from_start(held_out.load(i), length) for i in range(len(held_out))]
        groups = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]
        self._batches: list[WindowBatch] = [stack_windows(group, length) for group in groups]
        self._rollout = rollout
        self._agent_config = agent_config
        self._device = device

    def __call__(self, model: InContextModel) -> Validation:
        """Validate; the model is not changed."""
        # A copy: whatever a model caches while it acts must not meet the next update.
        model = copy.deepcopy(model).eval()
        loss = self._loss(model)
        returns = None if self._rollout is None else mean_returns(self._rollout, model, self._agent_config)
        return Validation(loss, returns)

    @torch.no_grad()
    def _loss(self, model: InContextModel) -> float | None:
        total, steps = 0.0, 0
        for batch in self._batches:
            tokens, targets, weights = on_device(batch, self._device)
            there = int(weights.sum())
            total += float(action_loss(model(tokens)[0], targets, weights)) * there
            steps += there
        return total / steps if steps else None


def mean_returns(rollout: Rollout, model: InContextModel, agent_config: AgentConfig) -> tuple[float, ...]:
    """Mean over the tasks of each episode's return ``[episodes]``."""
    found = np.asarray(rollout(InContextAgent(model, agent_config)))
    return tuple(float(value) for value in found.mean(0))


def on_device(batch: WindowBatch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens ``[B, L, T]``, targets ``[B, L, A]`` and weights ``[B, L]`` as tensors."""
    tokens, targets, weights = (torch.from_numpy(a).to(device) for a in (batch.tokens, batch.targets, batch.weights))
    return tokens, targets, weights


class TrainedOn(Protocol):
    """Tasks that are trained on, as a dataset's manifest names them."""

    @property
    def env_id(self) -> str:
        """Gymnasium id."""

    @property
    def split(self) -> str:
        """Named split."""

    @property
    def split_hash(self) -> str:
        """Its content hash when the tasks were chosen."""

    @property
    def subset(self) -> str:
        """Part of the split, in words."""

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks."""


def require_unseen(trained_on: TrainedOn) -> None:
    """Raise where tasks are trained on that have to stay unseen: those of val and test.

    Of a split that is not known here, as that of imported data, they are those of the environment's default split, on
    which its agents are evaluated.

    Raises:
        DatasetError: they are, or the split has changed since, so that they may be.
    """
    known = split_names(trained_on.env_id)
    if not known:
        return
    split = task_split(trained_on.env_id, trained_on.split if trained_on.split in known else None)
    if split.name == trained_on.split and split.content_hash != trained_on.split_hash:
        raise DatasetError(
            f"the data was collected on split {trained_on.split!r} with hash {trained_on.split_hash}; "
            f"here it has {split.content_hash}"
        )
    if {_text(task) for task in trained_on.tasks} & {_text(task) for task in (*split.val, *split.test)}:
        raise DatasetError(
            f"the training tasks ({trained_on.subset}) hold validation or test tasks of split {split.name!r}, which "
            "have to stay unseen"
        )


def rollout_on_unseen_tasks(trained_on: TrainedOn, episodes: int, seed: int, more_tasks: int = 0) -> Rollout:
    """Roll-outs on the validation tasks of the split that the training tasks are of, and on more.

    Args:
        trained_on: which tasks must not be among them.
        episodes: in each task.
        seed: of the roll-outs, and of further tasks.
        more_tasks: drawn from the distribution beside the split's. Where it is discrete there may be fewer: what is
            trained on, the same as a test task, or there already is left out.

    Raises:
        DatasetError: the split has changed since, so that its validation tasks may have been trained on; or
            validation or test tasks are trained on.
    """
    from icrl_agents.evaluation import rollout

    require_unseen(trained_on)
    split = task_split(trained_on.env_id, trained_on.split)
    tasks = list(split.val)
    taken = {_text(task) for task in (*trained_on.tasks, *split.val, *split.test)}
    for task in env_definition(trained_on.env_id).sample_tasks(more_tasks, purpose_seed(seed, "validation tasks")):
        if _text(task) not in taken:
            taken.add(_text(task))
            tasks.append(task)
    return lambda agent: rollout(agent, tasks, episodes, seed).returns


def _text(task: Task) -> str:
    return json.dumps(dict(task), sort_keys=True)


def _from_start(history: TokenHistory, length: int) -> TokenHistory:
    return TokenHistory(history.tokens[:length], history.targets[:length], history.episode_starts[:1])
