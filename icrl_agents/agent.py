"""The agent: a trained model and its memory of one task, behind ``reset``, ``act`` and ``observe``.

B rows, N_o observation entries, N_a action entries, T token entries
"""

from contextlib import AbstractContextManager, nullcontext
from copy import copy
from pathlib import Path
from typing import Any, Self

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch.utils import _pytree as pytree

from icrl_agents import hub
from icrl_agents.agent_inputs import (
    RecordedExperience,
    Rows,
    as_array,
    as_finite,
    autoreset_mode_of,
    make_of,
    read_env,
    require_spaces,
)
from icrl_agents.agent_state import AgentState, checkpoint_digest
from icrl_agents.agent_steps import backbone_step, device_for, move_to, require_kernel
from icrl_agents.backbones import Carry, Precision
from icrl_agents.config import AgentConfig, to_dict
from icrl_agents.envs import env_ids
from icrl_agents.envs.own_modules import ADVICE
from icrl_agents.envs.seeds import checked_seed
from icrl_agents.episodes import EpisodeRecord, OnEpisode, run_in_one, run_in_rows
from icrl_agents.errors import (
    CallOrderError,
    ConfigError,
    InputError,
    NotFiniteError,
    UnknownNameError,
)
from icrl_agents.kernels import forced_kernel
from icrl_agents.model import ActionPrediction, InContextModel
from icrl_agents.provenance import warn_of_differences

PREFILL_CHUNK = 512
"""Steps that :meth:`InContextAgent.prefill` gives the model at once: bounds its memory."""


class InContextAgent:
    """An agent that learns a task while it acts: nothing but its memory changes.

    The loop is ``act``, step the environment, ``observe``; ``reset`` begins another task. An episode's end is
    no task's end: the agent keeps what it learned. One environment takes and gives single arrays and scalars;
    after ``reset(num_envs=B)`` or ``reset(env=vector_env)`` everything has a leading axis of B rows.

    Every method checks all its arguments before it changes anything.

    An agent is for one thread at a time. Agents that share a model, that is clones and others made of the same
    ``model``, may act in as many threads at once: acting writes to an agent's own memory alone. Whoever trains,
    moves or reloads the model meanwhile needs a lock around all of them.

    Args:
        model: shared, not copied; moved to ``device`` and set to evaluation mode.
        config: what it was trained for.
        device: where the model runs; default: where its weights are.
        precision: of the matrices in every single step: ``"float32"``, or ``"bfloat16"`` or ``"int8"``, which a Mamba
            on the CPU can read faster; :meth:`prefill` runs in float32.
        kernel: run this S6 kernel, ``"cpu"``, ``"triton"``, ``"mamba-ssm"`` or ``"reference"``, or raise; default: the
            one in ``ICRL_KERNEL``, else the fastest (see :mod:`icrl_agents.kernels`).

    Raises:
        ConfigError: ``model`` was not built from ``config.model``, cannot step in that precision, has no kernels, or
            the kernel cannot run it here.
        UnknownNameError: no such kernel.
    """

    def __init__(
        self,
        model: InContextModel,
        config: AgentConfig,
        *,
        device: torch.device | str | None = None,
        precision: Precision = "float32",
        kernel: str | None = None,
    ) -> None:
        if to_dict(model.config) != to_dict(config.model):
            raise ConfigError(f"the model was built from {model.config}, not from {config.model}")
        if device is not None:
            move_to(model, device)
        self.model = model.eval()
        self.config = config
        self.precision = precision
        self.kernel = kernel
        if kernel is not None:
            require_kernel(model, kernel, precision)
        self._backbone_step = backbone_step(model.backbone, precision, kernel)
        self._low = np.array(config.action_low, np.float32)
        self._high = np.array(config.action_high, np.float32)
        self._carry = model.backbone.initial_carry(1, device="meta")  # what memory of one row looks like
        self._compared = False  # with what is here, see provenance
        generator = torch.Generator()
        generator.seed()
        self._state = AgentState.fresh(model, None, AutoresetMode.SAME_STEP, generator)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str = "auto",
        precision: Precision = "float32",
        kernel: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Load an agent.

        Where it was made with another version of the physics or another content of its task split than are here, one
        line warns (:class:`~icrl_agents.errors.ProvenanceWarning`).

        Args:
            name: a directory, a bundled agent's name, or a Hugging Face Hub id ``"org/name"``, tried in this
                order.
            revision: branch, tag or commit on the Hub.
            device: ``"auto"`` takes a GPU if there is one, and what is asked for runs there.
            precision: see :class:`InContextAgent`.
            kernel: see :class:`InContextAgent`.
            token: for private repositories on the Hub; default: that of ``hf auth login`` or ``HF_TOKEN``.

        Raises:
            UnknownNameError: no such agent or kernel.
            CheckpointError: files that are missing, damaged or do not fit each other, or the Hub does not give them.
            ConfigError: a ``config.json`` that is not one, no such device, or a model that cannot step in that
                precision or with that kernel.
        """
        if device == "auto":
            device = device_for(precision, kernel)
        model, config = hub.load_checkpoint(hub.resolve(name, revision, token))
        agent = cls(model, config, device=device, precision=precision, kernel=kernel)
        agent._compare(stacklevel=2)
        return agent

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config, weights and model card, so that ``from_pretrained(directory)`` gives this agent.

        Its card says neither how it was trained nor what was measured, unless that lies there, beside the same weights.
        Over another checkpoint, what was said of that one's weights is deleted.

        Raises:
            CheckpointError: weights that could not be loaded again.
            ConfigError: the directory holds no checkpoint, but files of a checkpoint's names.
        """
        hub.save_checkpoint(directory, self.model, self.config)

    def make_env(self, **options: Any) -> gymnasium.Env:
        """The environment it was trained for; ``options`` go to ``gymnasium.make``.

        It warns where :meth:`from_pretrained` would, unless that did.

        Raises:
            UnknownNameError: nobody registered ``config.env_id``.
            ConfigError: the environment's spaces are not the agent's, or it has no such options.
        """
        self._require_registered()
        self._compare(stacklevel=2)
        env = make_of(gymnasium.make, self.config.env_id, {**self.config.env_options, **options})
        require_spaces(self.config, env.observation_space, env.action_space)
        return env

    def make_vec_env(self, num_envs: int, **options: Any) -> VectorEnv:
        """The same, ``num_envs`` rows at once; ``options`` go to ``gymnasium.make_vec``."""
        self._require_registered()
        self._compare(stacklevel=2)
        options = {**self.config.env_options, **options, "num_envs": num_envs}
        env = make_of(gymnasium.make_vec, self.config.env_id, options)
        require_spaces(self.config, env.single_observation_space, env.single_action_space)
        return env

    @property
    def device(self) -> torch.device:
        """Where the model is. Whoever moves it calls :meth:`reset` next: what an agent remembers stays behind."""
        return self.model.token_mean.device

    @property
    def num_envs(self) -> int | None:
        """B, rows it acts in; None for one environment."""
        return None if self._state.single else len(self._state.tokens)

    # ------------------------------------------------------------------ the loop

    def reset(
        self,
        num_envs: int | None = None,
        env: Any = None,
        autoreset_mode: AutoresetMode | str | None = None,
        seed: int | None = None,
    ) -> None:
        """A new task: forget everything.

        Args:
            num_envs: B, rows of a vector environment; None is one environment.
            env: what to act in, instead of ``num_envs``: rows and autoreset mode are read from it. Gymnasium's ``Env``
                or ``VectorEnv``, or stable-baselines3's ``VecEnv``.
            autoreset_mode: how the vector environment begins episodes; default: as ``env`` says, else
                SAME_STEP. SAME_STEP: the observation after an episode's last step is the next one's first.
                NEXT_STEP: there is one more step whose action is ignored; the agent does not take it for
                experience. DISABLED: you reset.
            seed: of the random stream of sampled actions; None lets the stream go on.

        Raises:
            InputError: ``num_envs`` below 1 or beyond this machine's memory, both it and ``env``, or no such seed.
            ConfigError: the environment's spaces are not the agent's, or no such autoreset mode.
        """
        if env is not None:
            if num_envs is not None:
                raise InputError("give num_envs or env, not both")
            num_envs, autoreset_mode = read_env(self.config, env, autoreset_mode)
        whole = isinstance(num_envs, int | np.integer) and not isinstance(num_envs, bool)
        if num_envs is not None and (not whole or num_envs < 1):
            raise InputError(f"num_envs is a whole number of at least 1, got {num_envs!r}")
        mode, seed = autoreset_mode_of(autoreset_mode), checked_seed(seed)
        if seed is not None and seed >= 2**63:
            raise InputError(f"a seed of sampled actions is below 2**63, got {seed}")
        try:
            state = AgentState.fresh(self.model, num_envs, mode, self._state.generator)
        except (MemoryError, RuntimeError, ValueError, OverflowError) as error:  # NumPy's and PyTorch's ways to say it
            if num_envs is None:
                raise
            raise InputError(f"no memory for num_envs={num_envs} rows: {error}") from error
        if seed is not None:
            state.generator.manual_seed(seed)
        self._state = state

    @torch.inference_mode()
    def act(self, obs: npt.ArrayLike, deterministic: bool | None = None) -> np.ndarray:
        """Decide.

        Args:
            obs: ``[N_o]``, or ``[B, N_o]`` for B rows, of any real dtype.
            deterministic: False samples from a Gaussian head; a deterministic head has nothing to sample.
                None is what the checkpoint was trained for: True for the deterministic head, False for the
                Gaussian one.

        Returns:
            Actions ``[N_a]`` or ``[B, N_a]`` float32 inside the action bounds. Under NEXT_STEP, rows whose
            environment is about to reset get one that it ignores.

        Raises:
            CallOrderError: the last action's reward was not observed.
            InputError: another shape, no real numbers, or not finite.
            NotFiniteError: the action is, because of such weights; only :meth:`reset` helps.
        """
        state = self._state
        if state.acted:
            raise CallOrderError("act was called twice: observe the last action's reward first")
        observations = self._inputs.real("obs", obs, (self.config.model.observation_dim,))
        if state.resetting.any():
            self._decide_some(np.flatnonzero(~state.resetting), observations, deterministic)
        else:
            state.tokens[:, self.model.layout.observation] = observations
            prediction, state.carry = self._step(state.tokens, state.carry)
            state.actions[:] = self._choose(prediction, deterministic)
        state.acted = True
        return self._out(state.actions)

    def observe(
        self,
        reward: npt.ArrayLike,
        terminated: npt.ArrayLike,
        truncated: npt.ArrayLike = False,
        *,
        action: npt.ArrayLike | None = None,
    ) -> None:
        """What the last action brought.

        Args:
            reward: scalar, or ``[B]``.
            terminated: bool, or ``[B]``.
            truncated: the same; a single False stands for all rows.
            action: ``[N_a]`` or ``[B, N_a]``, if something else than the agent's action was executed.

        Raises:
            CallOrderError: there is no last action.
            InputError: another shape, or not finite.
        """
        state, at = self._state, self.model.layout
        if not state.acted:
            raise CallOrderError("observe was called before act")
        rewards = self._inputs.real("reward", reward, ())
        done = self._inputs.flags("terminated", terminated)
        if truncated is not False:
            done = done | self._inputs.flags("truncated", truncated)
        actions = state.actions
        if action is not None:
            actions = np.clip(self._inputs.real("action", action, self._low.shape), self._low, self._high)
        lived = ~state.resetting
        where = lived[:, None]
        tokens = state.tokens
        np.copyto(tokens[:, at.previous_observation], tokens[:, at.observation], where=where)
        np.copyto(tokens[:, at.previous_action], actions, where=where)
        np.copyto(tokens[:, at.previous_reward], rewards, where=lived)
        np.copyto(tokens[:, at.episode_start], done, where=lived)
        state.resetting = done & lived if state.autoreset_mode is AutoresetMode.NEXT_STEP else np.zeros_like(lived)
        state.acted = False

    @torch.inference_mode()
    def forget(self, mask: npt.ArrayLike | None = None) -> None:
        """The rows in ``mask`` ``[B]`` (None: all) got a new task: they begin anew, the others are untouched.

        Raises:
            CallOrderError: the last action's reward was not observed.
            InputError: a mask of another shape.
        """
        rows = self._rows("forget", mask)
        state = self._state
        state.carry = self.model.backbone.forget(state.carry, self._tensor(rows))
        state.tokens[rows] = 0.0
        state.tokens[rows, self.model.layout.episode_start] = 1.0

    def begin_episode(self, mask: npt.ArrayLike | None = None, *, abandon: bool = False) -> None:
        """You cut the episodes of the rows in ``mask`` ``[B]`` (None: all) short and reset them; same task.

        Args:
            mask: bool ``[B]``.
            abandon: whatever the last action brought is lost, of an interrupted program say: go on without it. The
                agent has decided on it, so that what came before it is read once more with the next observation.

        Raises:
            CallOrderError: the last action's reward was not observed.
            InputError: a mask of another shape, or to abandon what some rows did.
        """
        if abandon:
            if mask is not None:
                raise InputError("an action is abandoned in all rows at once: give no mask")
            self._state.acted = False
        rows = self._rows("begin_episode", mask)
        self._state.tokens[rows, self.model.layout.episode_start] = 1.0
        self._state.resetting[rows] = False

    @torch.inference_mode()
    def prefill(self, history: RecordedExperience) -> None:
        """Live through recorded experience, its own or a demonstration, as if the agent had acted so itself.

        Args:
            history: arrays ``[T, ...]``, or ``[B, T, ...]`` for B rows; it continues what the agent knows. Where its
                last step ended no episode and yet the environment is reset next, call :meth:`begin_episode`.

        Raises:
            CallOrderError: the last action's reward was not observed.
            InputError: other shapes, or not finite.
            ConfigError: the agent's ``kernel`` cannot go on from a memory, as mamba-ssm's scan, which only steps can.
        """
        state, at = self._state, self.model.layout
        if state.acted:
            raise CallOrderError("prefill was called after act: observe the last action's reward first")
        observations, actions, rewards, done = self._inputs.experience(history, at.observation_dim, at.action_dim)
        if not rewards.size:
            return
        actions = np.clip(actions, self._low, self._high)
        tokens = at.encode_history(observations, actions, rewards, done)  # [B, T, token]
        tokens[:, 0, at.observation_dim :] = state.tokens[:, at.observation_dim :]
        carry = state.carry
        for start in range(0, tokens.shape[1], PREFILL_CHUNK):
            with self._kernels():
                _, carry = self.model(self._tensor(tokens[:, start : start + PREFILL_CHUNK]), carry)
        state.carry = carry
        # The token after the last step, its observation still to come
        last = (observations[:, -1], actions[:, -1], rewards[:, -1], done[:, -1])
        state.tokens = at.encode(np.zeros_like(last[0]), *last)
        state.tokens[state.resetting, at.episode_start] = 1.0

    # ------------------------------------------------------------------ whole episodes

    def run_episodes(
        self,
        env: gymnasium.Env | VectorEnv,
        episodes: int = 1,
        *,
        seed: int | None = None,
        deterministic: bool | None = None,
        remember: bool = False,
        autoreset_mode: AutoresetMode | str | None = None,
        on_episode: OnEpisode | None = None,
    ) -> EpisodeRecord:
        """Act for whole episodes, learning from one to the next.

        Whatever begins an episode, the environment by any of Gymnasium's autoreset modes or this method, and wherever
        the environment says ``info["new_task"]`` after the first reset, the agent forgets the old task, in those rows
        alone. Rows whose episodes are over act on until all are. (Published numbers: :func:`icrl_agents.evaluate`.)

        Args:
            env: single or vector, with the agent's spaces; it is reset first.
            episodes: E, in each row.
            seed: of the first reset and, of a sampling agent that does not ``remember``, the actions.
            deterministic: as in :meth:`act`.
            remember: go on with what it knows, of demonstrations say, instead of a :meth:`reset` first. It does so
                whatever the environment calls its first task, which a new one always calls new: see to it that it is
                the task that it knows, by ``task=``. A seed may draw another, and so may a new trial or ``set_task``.
            autoreset_mode: as in :meth:`reset`.
            on_episode: called after each episode with its row, its number from 1 and its return.

        Raises:
            InputError: ``episodes`` below 1, no such seed, or to remember in another number of rows.
            CallOrderError: to remember, while the last action's reward was not observed.
            ConfigError: the environment's spaces are not the agent's, or no such autoreset mode.
        """
        if isinstance(episodes, bool) or not isinstance(episodes, int | np.integer) or episodes < 1:
            raise InputError(f"episodes is a whole number of at least 1, got {episodes!r}")
        seed = checked_seed(seed)
        if not isinstance(env, gymnasium.Env | VectorEnv):
            raise InputError(f"expected a gymnasium Env or VectorEnv, got {type(env).__name__}")
        if remember:
            self._go_on_in(env, autoreset_mode)
        else:
            self.reset(env=env, autoreset_mode=autoreset_mode, seed=seed)
        if isinstance(env, VectorEnv):
            mode = self._state.autoreset_mode
            return run_in_rows(self, env, mode, episodes, seed, deterministic, not remember, on_episode)
        return run_in_one(self, env, episodes, seed, deterministic, not remember, on_episode)

    # ------------------------------------------------------------------ stable-baselines3

    @torch.inference_mode()
    def predict(
        self,
        observation: npt.ArrayLike | dict[str, np.ndarray],
        state: Carry | None = None,
        episode_start: npt.ArrayLike | None = None,
        deterministic: bool | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Decide without touching the agent's own memory; stable-baselines3's ``PolicyPredictor``.

        Args:
            observation: ``[T]`` or ``[B, T]`` from :class:`~icrl_agents.ExperienceObservation`: observation
                and previous transition in the layout of the token. Dictionaries are refused.
            state: what the last call returned; None forgets everything, what the observation tells of a step before
                included. Not changed.
            episode_start: not used. The observation says where episodes and tasks start; memory outlives episodes.
            deterministic: as in :meth:`act`.

        Returns:
            Actions ``[N_a]`` or ``[B, N_a]`` and the new state, a tuple of arrays.

        Raises:
            InputError: another shape, not finite, or the state of another agent or number of rows.
        """
        size = self.model.layout.size
        array = as_array("observation", observation)
        if array.ndim not in (1, 2) or array.shape[-1] != size or array.size == 0:
            raise InputError(
                f"observation: expected shape [{size}] or [B, {size}], as ExperienceObservation gives, "
                f"got {array.shape}"
            )
        tokens = as_finite("observation", array).reshape(-1, size)
        at = self.model.layout
        if state is None:
            tokens[:, at.observation_dim :] = 0.0
            tokens[:, at.episode_start] = 1.0
        carry = self._carry_of(state, len(tokens))
        before = tokens[:, at.observation_dim : -1]
        new = (tokens[:, at.episode_start] == 1.0) & ~before.any(1)  # as ExperienceObservation begins a task
        if state is not None and new.any():
            carry = self.model.backbone.forget(carry, self._tensor(new))
        prediction, carry = self._step(tokens, carry)
        actions = self._choose(prediction, deterministic)
        memory = tuple(leaf.cpu().numpy() for leaf in pytree.tree_leaves(carry))
        return (actions[0] if array.ndim == 1 else actions), memory

    # ------------------------------------------------------------------ memory as a thing

    def save_state(self, path: str | Path) -> None:
        """Write everything the agent remembers to a safetensors file."""
        self._state.write(Path(path), checkpoint_digest(self.model, self.config))

    def load_state(self, path: str | Path) -> None:
        """Remember what :meth:`save_state` wrote, and act in as many rows.

        Call :meth:`begin_episode` where the environment does not go on from where it was then: with ``abandon=True``
        where it was saved between :meth:`act` and :meth:`observe`.

        Raises:
            CheckpointError: no such file, damaged, of another version or of another checkpoint.
        """
        self._state = AgentState.read(Path(path), self.model, checkpoint_digest(self.model, self.config))

    def get_state(self) -> AgentState:
        """A copy of everything the agent remembers."""
        return self._state.copy()

    def set_state(self, state: AgentState) -> None:
        """Remember what :meth:`get_state` of an agent with a model of the same shape gave; it is copied.

        Raises:
            InputError: it is no such state.
        """
        if not isinstance(state, AgentState):
            raise InputError(f"expected what get_state returns, got {type(state).__name__}")
        leaves, rows = pytree.tree_leaves(state.carry), len(state.tokens)
        given = [(state.tokens.shape, state.actions.shape), *((tuple(leaf.shape), leaf.dtype) for leaf in leaves)]
        expected = [
            ((rows, self.model.layout.size), (rows, len(self._low))),
            *(((rows, *leaf.shape[1:]), leaf.dtype) for leaf in pytree.tree_leaves(self._carry)),
        ]
        if given != expected:
            raise InputError(f"expected the state of an agent like {self.config.name!r}, with memory of other shapes")
        own = state.copy()
        leaves = [leaf.to(self.device) for leaf in pytree.tree_leaves(own.carry)]
        own.carry = pytree.tree_unflatten(leaves, pytree.tree_structure(self._carry))
        self._state = own

    def clone(self) -> Self:
        """An agent with the same weights (shared) and a copy of the memory."""
        twin = copy(self)
        twin._state = self._state.copy()
        return twin

    # ------------------------------------------------------------------ private

    def _step(self, tokens: np.ndarray, carry: Carry) -> tuple[ActionPrediction, Carry]:
        with self._kernels():
            return self.model.step(self._tensor(tokens), carry, backbone_step=self._backbone_step)

    def _kernels(self) -> AbstractContextManager[None]:
        """Where the model runs with the kernel that was asked for."""
        return nullcontext() if self.kernel is None else forced_kernel(self.kernel)

    def _compare(self, stacklevel: int) -> None:
        """Warn, once, where physics or tasks are not those the agent was made with."""
        if not self._compared:
            self._compared = True
            warn_of_differences(self.config, stacklevel=stacklevel + 1)

    def _go_on_in(self, env: gymnasium.Env | VectorEnv, autoreset_mode: AutoresetMode | str | None) -> None:
        """Make an environment that will be reset the one to act in; memory stays."""
        num_envs, autoreset_mode = read_env(self.config, env, autoreset_mode)
        if num_envs != self.num_envs:
            known, new = (f"{n} rows" if n else "one environment" for n in (self.num_envs, num_envs))
            raise InputError(f"the agent remembers {known}, and cannot go on in {new}")
        mode = autoreset_mode_of(autoreset_mode)
        self.begin_episode()
        self._state.autoreset_mode = mode

    def _decide_some(self, rows: np.ndarray, observations: np.ndarray, deterministic: bool | None) -> None:
        """Decide in ``rows`` ``[R]`` alone; the others' memory is untouched and their action is ignored."""
        state = self._state
        state.actions[:] = np.clip(0.0, self._low, self._high)
        if not len(rows):
            return
        state.tokens[rows, : self.model.layout.observation_dim] = observations[rows]
        index = self._tensor(rows)
        carry = pytree.tree_map(lambda leaf: leaf[index], state.carry)
        prediction, carry = self._step(state.tokens[rows], carry)
        pytree.tree_map(lambda whole, part: whole.index_copy_(0, index, part), state.carry, carry)
        state.actions[rows] = self._choose(prediction, deterministic)

    def _choose(self, prediction: ActionPrediction, deterministic: bool | None) -> np.ndarray:
        """The action ``[B, N_a]`` float32, clipped."""
        mean = prediction.mean.float().cpu()
        if prediction.log_std is not None and not deterministic:
            noise = torch.randn(mean.shape, generator=self._state.generator, dtype=torch.float32, device="cpu")
            mean = mean + prediction.log_std.float().cpu().exp() * noise
        return np.clip(self._require_finite(mean.numpy()), self._low, self._high)

    def _require_finite(self, action: np.ndarray) -> np.ndarray:
        if not np.isfinite(action).all():
            raise NotFiniteError(
                f"the weights of agent {self.config.name!r} gave an action that is not finite: {action.tolist()}"
            )
        return action

    def _carry_of(self, state: Carry | None, rows: int) -> Carry:
        """A predict state as a carry that may be consumed."""
        if state is None:
            return self.model.backbone.initial_carry(rows)
        given = pytree.tree_leaves(state)
        leaves, structure = pytree.tree_flatten(self._carry)
        expected = [(rows, *leaf.shape[1:]) for leaf in leaves]
        if [tuple(np.shape(leaf)) for leaf in given] != expected:
            raise InputError(f"expected a state of {rows} row(s) that predict of this agent returned, or None")
        leaves = [
            torch.tensor(np.asarray(leaf), dtype=like.dtype, device=self.device)
            for leaf, like in zip(given, leaves, strict=True)
        ]
        return pytree.tree_unflatten(leaves, structure)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def _out(self, rows: np.ndarray) -> np.ndarray:
        return rows[0].copy() if self._state.single else rows.copy()

    @property
    def _inputs(self) -> Rows:
        """What checks arrays against the rows the agent acts in."""
        return Rows(len(self._state.tokens), self._state.single)

    def _rows(self, method: str, mask: npt.ArrayLike | None) -> np.ndarray:
        if self._state.acted:
            lost = "; begin_episode(abandon=True) where it is lost" if method == "begin_episode" else ""
            raise CallOrderError(f"{method} was called after act: observe the last action's reward first{lost}")
        if mask is None:
            return np.ones(len(self._state.tokens), bool)
        return self._inputs.flags("mask", mask)

    def _require_registered(self) -> None:
        known = env_ids()  # with what ICRL_IMPORT brings
        if self.config.env_id not in gymnasium.registry:
            raise UnknownNameError("environment", self.config.env_id, known, ADVICE)
