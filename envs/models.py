"""The physics models of the environments, compiled."""

from pathlib import Path

import mujoco

_FLOOR, _FARTHER = "floor", 8
"""The ground that is run on, which a fast ant leaves within an episode; so many times as far it is drawn, in the same
pattern. In the simulation a plane has no end anyway."""


def load_model(path: Path, width: int, height: int) -> mujoco.MjModel:
    """Compile a model, with room to render pictures of ``width`` times ``height`` pixels.

    Where a model asks the compiler for a total mass, as Gymnasium's half cheetah does, MuJoCo warns on standard error
    and in a file MUJOCO_LOG.TXT that this is deprecated. Here it is scaled after compilation, as the warning
    recommends; the simulation is the same bit for bit.

    Args:
        path: of the MJCF file.
        width: in pixels; the model's own is never made smaller.
        height: in pixels, as well.
    """
    spec = mujoco.MjSpec.from_file(str(path))
    mass = spec.compiler.settotalmass
    spec.compiler.settotalmass = -1.0  # none asked for
    model = spec.compile()
    if mass > 0:
        mujoco.mj_setTotalmass(model, mass)
        mujoco.mj_setConst(model, mujoco.MjData(model))
    for i in range(model.ngeom):
        if model.geom(i).name == _FLOOR and model.geom_type[i] == mujoco.mjtGeom.mjGEOM_PLANE:
            model.geom_size[i, :2] *= _FARTHER
            model.mat_texrepeat[model.geom_matid[i]] *= _FARTHER
    screen = model.vis.global_
    screen.offwidth, screen.offheight = max(screen.offwidth, width), max(screen.offheight, height)
    return model
