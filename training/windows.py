"""From learning histories to training sequences: thin them out, lay them out as tokens, cut windows.

Of every history one episode in k is kept, which makes the learner that is distilled k times faster than its
source. "Previous" at the start of a kept episode is the end of the last *kept* one, as if the episodes
between had never been; at the first step of all it is 0, as it is for an agent that meets a new task.

    B batch, L steps of a window, T token entries, A action entries, N_o observation entries, S kept steps
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from icrl_agents.errors import ConfigError, DatasetError
from icrl_agents.model import InContextModel
from icrl_agents.tokens import TokenLayout
from icrl_agents.training.histories import History, HistoryDataset

Target = Literal["sampled", "source_mean", "final_policy"]
"""What the model learns to predict at every step: the action the source executed (the paper), the mean of the
distribution it drew it from, or what the finished source policy would do there."""

FinalPolicy = Callable[[int, np.ndarray], np.ndarray]
"""``final_policy(task_index, observations [n, N_o]) -> actions [n, A]`` of the finished source of a task."""

SMALLEST_STD = 1e-6
"""An entry that varies less than this is constant; it is centred and not scaled."""


@dataclass(frozen=True)
class TokenHistory:
    """The kept episodes of one history, as the model reads them.

    Attributes:
        tokens: ``[S, T]`` raw tokens.
        targets: ``[S, A]``.
        episode_starts: ``[E]``, index of the first step of each kept episode.
    """

    tokens: np.ndarray
    targets: np.ndarray
    episode_starts: np.ndarray


@dataclass(frozen=True)
class WindowBatch:
    """Windows side by side.

    Attributes:
        tokens: ``[B, L, T]`` raw tokens; zeros where a history was shorter than the window.
        targets: ``[B, L, A]``.
        weights: ``[B, L]`` float32, what each step counts; 0 where there is none.
        memory: parts of the backbone's carry that they begin with, ``[B, ...]`` each, named as in
            :mod:`icrl_agents.training.lives`; none: an empty memory.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    memory: Mapping[str, np.ndarray] = field(default_factory=dict)

    def rows(self, rows: slice) -> "WindowBatch":
        """Some of the windows."""
        memory = {name: part[rows] for name, part in self.memory.items()}
        return WindowBatch(self.tokens[rows], self.targets[rows], self.weights[rows], memory)


def kept_episodes(episodes: int, keep_every: int, offset: int | None = None) -> np.ndarray:
    """Which episodes of a history are kept: ``offset, offset + k, offset + 2k, ...``.

    Args:
        episodes: how many the history has.
        keep_every: k.
        offset: the first kept, in ``[0, k)``; None chooses it so that the very last episode is kept.
    """
    if offset is None:
        offset = (episodes - 1) % keep_every
    return np.arange(offset, episodes, keep_every)


@dataclass(frozen=True)
class KeptHistories:
    """Histories of a dataset, thinned out and laid out as tokens on request.

    Attributes:
        dataset: where they come from.
        histories: which of its histories.
        keep_every: k.
        target: what to predict.
        action_low: ``[A]``; targets are clipped to what can be executed.
        action_high: ``[A]``.
        final_policy: needed by ``target="final_policy"``.
    """

    dataset: HistoryDataset
    histories: Sequence[int]
    keep_every: int
    target: Target
    action_low: np.ndarray
    action_high: np.ndarray
    final_policy: FinalPolicy | None = None

    def __post_init__(self) -> None:
        if self.keep_every < 1:
            raise ConfigError(f"keep_every: expected at least 1, got {self.keep_every}")
        if self.target == "final_policy" and self.final_policy is None:
            raise ConfigError('target "final_policy" needs the final policy of every source')

    @property
    def layout(self) -> TokenLayout:
        """Of the tokens."""
        return TokenLayout(self.dataset.manifest.observation_dim, self.dataset.manifest.action_dim)

    def __len__(self) -> int:
        return len(self.histories)

    def offsets(self, index: int) -> int:
        """How many choices of the first kept episode one history offers."""
        return min(self.keep_every, len(self.dataset.episode_ends(self.histories[index])))

    def load(self, index: int, offset: int | None = None) -> TokenHistory:
        """One history.

        Args:
            index: into :attr:`histories`.
            offset: first kept episode, see :func:`kept_episodes`.

        Raises:
            DatasetError: it has no whole episode to keep.
        """
        h = self.histories[index]
        kept = kept_episodes(len(self.dataset.episode_ends(h)), self.keep_every, offset)
        if not len(kept):
            raise DatasetError(f"history {h} has no whole episode to keep")
        history = self.dataset.history(h, kept.tolist())
        targets = np.clip(self._targets(h, history), self.action_low, self.action_high).astype(np.float32)
        tokens = self.layout.encode_history(
            history.observations, history.actions, history.rewards, history.terminated | history.truncated
        )
        return TokenHistory(tokens, targets, history.episode_starts)

    def _targets(self, h: int, history: History) -> np.ndarray:
        if self.final_policy is None or self.target != "final_policy":
            return history.actions if self.target == "sampled" else history.mean_actions
        actions = np.asarray(self.final_policy(self.dataset.task_index(h), history.observations))
        if actions.shape != history.actions.shape:
            raise ConfigError(f"final_policy: expected {history.actions.shape}, got {actions.shape}")
        return actions


class WindowSampler:
    """Draws batches of windows; no window crosses from one history into another.

    Every history is drawn once before any is drawn again. Given its saved state a sampler goes on exactly as
    it would have.

    With a fixed offset all tokens are in memory (float32; 350 histories x 2000 steps x 20 entries: 56 MB).
    With ``random_offset`` each window keeps other episodes of its history and is read from the dataset.

    Args:
        source: the histories.
        batch_size: B.
        length: L, steps of a window.
        from_start: probability that a window begins where its history begins, at least 1/2: an empty memory
            should mean a new task, and a window from the middle of a history has one too. Those begin at some
            episode's start and keep their true previous transition.
        random_offset: draw for each window which one in k episodes to keep.
        seed: of the sampler's own random stream.
    """

    def __init__(
        self,
        source: KeptHistories,
        batch_size: int,
        length: int,
        *,
        from_start: float = 0.5,
        random_offset: bool = False,
        seed: int = 0,
    ) -> None:
        if not 0.5 <= from_start <= 1:
            raise ConfigError(f"from_start: expected at least 0.5 and at most 1, got {from_start}")
        if batch_size < 1 or length < 1 or not len(source):
            raise ConfigError(f"nothing to draw: {len(source)} histories, batches of {batch_size} x {length}")
        self._source = source
        self._shape = (batch_size, length)
        self._from_start = from_start
        self._random_offset = random_offset
        self._random = np.random.default_rng(seed)
        self._order: list[int] = []  # histories still to be drawn in this round
        self._kept = [] if random_offset else [source.load(i) for i in range(len(source))]

    def prepare(self, update: int, model: InContextModel) -> bool:
        """Histories do not change with the model: nothing to do, nothing to save."""
        return False

    def clean_up(self) -> None:
        """Nothing was written."""

    def sample(self) -> WindowBatch:
        """The next batch."""
        return stack_windows([self._window() for _ in range(self._shape[0])], self._shape[1])

    def state(self) -> str:
        """Where the sampler stands, as JSON text."""
        return json.dumps({"random": self._random.bit_generator.state, "order": self._order})

    def restore(self, state: str) -> None:
        """Go on from a saved :meth:`state` of a sampler over the same histories."""
        saved: Mapping[str, Any] = json.loads(state)
        self._random.bit_generator.state = saved["random"]
        self._order = list(saved["order"])

    def _window(self) -> TokenHistory:
        """One window, at most ``length`` steps."""
        if not self._order:
            self._order = self._random.permutation(len(self._source)).tolist()
        index = self._order.pop()
        if self._random_offset:
            history = self._source.load(index, int(self._random.integers(self._source.offsets(index))))
        else:
            history = self._kept[index]
        length = self._shape[1]
        starts = history.episode_starts[history.episode_starts + length <= len(history.tokens)]
        from_start = self._random.random() < self._from_start or not len(starts)
        start = 0 if from_start else int(self._random.choice(starts))
        stop = start + length
        return TokenHistory(history.tokens[start:stop], history.targets[start:stop], np.zeros(1, np.int64))


def stack_windows(windows: Sequence[TokenHistory], length: int) -> WindowBatch:
    """Windows of at most ``length`` steps as one batch, the shorter ones padded with zeros that do not count."""
    tokens = np.zeros((len(windows), length, windows[0].tokens.shape[1]), np.float32)
    targets = np.zeros((len(windows), length, windows[0].targets.shape[1]), np.float32)
    weights = np.zeros((len(windows), length), np.float32)
    for row, window in enumerate(windows):
        steps = len(window.tokens)
        tokens[row, :steps], targets[row, :steps], weights[row, :steps] = window.tokens, window.targets, 1
    return WindowBatch(tokens, targets, weights)


def token_statistics(histories: Sequence[np.ndarray], layout: TokenLayout) -> tuple[np.ndarray, np.ndarray]:
    """What normalises tokens: mean and standard deviation ``[T]`` of each entry.

    An observation and a previous observation share their statistics; the reward has its own; actions, which
    are bounded, and the episode-start flag are left as they are.

    Args:
        histories: tokens ``[S, T]`` of each training history.
        layout: of the tokens.
    """
    mean, std = np.zeros(layout.size, np.float32), np.ones(layout.size, np.float32)
    observations = _moments([tokens[:, layout.observation] for tokens in histories])
    rewards = _moments([tokens[1:, layout.previous_reward] for tokens in histories])
    for at in (layout.observation, layout.previous_observation):
        mean[at], std[at] = observations
    mean[layout.previous_reward], std[layout.previous_reward] = rewards
    return mean, std


def _moments(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the first axis of all parts, in float64; 1 for what is constant."""
    count = sum(len(part) for part in parts)
    mean = sum(part.sum(0, dtype=np.float64) for part in parts) / max(count, 1)
    squares = sum(np.square(part - mean, dtype=np.float64).sum(0) for part in parts)
    std = np.sqrt(np.asarray(squares) / max(count, 1))
    return np.asarray(mean), np.where(std < SMALLEST_STD, 1.0, std)
