"""Moving pictures of an agent that learns: episodes of one task side by side."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from icrl_agents.agent import InContextAgent
from icrl_agents.atomic import require_writable
from icrl_agents.errors import InputError, MissingExtraError

FRAME_SIZE = 320
"""Width and height of one episode's picture in pixels."""


def require_film(path: str | Path) -> Any:
    """What writes films; raise where it is missing, or cannot write there, before the work that a film is to show.

    Raises:
        MissingExtraError: imageio is not installed.
        InputError: no place to write to.
    """
    try:
        import imageio.v3 as imageio
    except ImportError as error:
        raise MissingExtraError("imageio", "video") from error
    require_writable(Path(path))
    return imageio


def record_learning(
    agent: InContextAgent,
    task: Mapping[str, Any],
    path: str | Path,
    seed: int = 0,
    episodes: int = 40,
    shown: Sequence[int] = (1, 5, 40),
) -> Path:
    """Let an agent learn one task and write some of its episodes side by side as a GIF.

    Args:
        agent: is reset.
        task: the hidden task; the pictures show it.
        path: of the GIF.
        seed: of the initial states.
        episodes: in all.
        shown: which of them to show, counted from 1.

    Raises:
        MissingExtraError: imageio is not installed.
        InputError: none of the episodes is to be shown, or no place to write to.
    """
    if not set(shown) & set(range(1, episodes + 1)):
        raise InputError(f"expected an episode from 1 to {episodes} to show, got {tuple(shown)}")
    imageio = require_film(path)
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo's own default wants a display
    env = agent.make_env(task=task, render_mode="rgb_array", width=FRAME_SIZE, height=FRAME_SIZE)
    agent.reset(seed=seed)
    observation, _ = env.reset(seed=seed)
    films: list[list[np.ndarray]] = []
    for episode in range(1, episodes + 1):
        frames: list[np.ndarray] = []
        done = False
        while not done:
            if episode in shown:
                frames.append(np.asarray(env.render()))
            observation, reward, terminated, truncated, _ = env.step(agent.act(observation))
            agent.observe(float(reward), terminated, truncated)
            done = terminated or truncated
        observation, _ = env.reset()
        if frames:
            films.append(frames)
    env.close()
    length = max(map(len, films))
    stretched = [film + [film[-1]] * (length - len(film)) for film in films]
    side_by_side = [np.concatenate(frames, axis=1) for frames in zip(*stretched, strict=True)]
    path = Path(path)
    imageio.imwrite(path, side_by_side, duration=1000 / float(env.metadata["render_fps"]) * 2, loop=0)
    return path
