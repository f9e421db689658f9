"""The physics models of the environments, compiled."""

from pathlib import Path

import mujoco
import numpy as np


def load_model(path: Path, width: int, height: int) -> mujoco.MjModel:
    """Compile a model, with room to render pictures of ``width`` times ``height`` pixels.

    Where a model asks the compiler for a total mass, as Gymnasium's half cheetah does, MuJoCo warns on standard error
    and in a file MUJOCO_LOG.TXT that this is deprecated. Here it is scaled after compilation, as the warning
    recommends. A floor is drawn farther. The model is otherwise the same bit for bit.

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
    _draw_floor_farther(model)
    screen = model.vis.global_
    screen.offwidth, screen.offheight = max(screen.offwidth, width), max(screen.offheight, height)
    return model


def _draw_floor_farther(model: mujoco.MjModel) -> None:
    """Let a finite plane named "floor" go on 8 times as far in pictures, in the same pattern.

    A fast ant leaves the 40 m of Gymnasium's floor within an episode. Contacts with a plane have no end anyway. A floor
    whose pattern goes by length or is another geom's as well stays as it is.
    """
    floor = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, "floor")
    if floor < 0 or model.geom_type[floor] != mujoco.mjtGeom.mjGEOM_PLANE or not model.geom_size[floor, :2].all():
        return
    material = model.geom_matid[floor]
    if material >= 0:
        if model.mat_texuniform[material] or np.count_nonzero(model.geom_matid == material) > 1:
            return
        model.mat_texrepeat[material] *= 8
    model.geom_size[floor, :2] *= 8
