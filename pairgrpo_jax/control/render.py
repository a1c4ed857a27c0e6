"""Pictures of the running cheetah, drawn from the side with Pillow: no OpenGL, so it works on any machine."""

from __future__ import annotations

import warnings
from pathlib import Path

import imageio.v2 as imageio
import mujoco
import numpy as np
from PIL import Image, ImageDraw

from pairgrpo_jax.control.mujoco_env import load_model

SIZE = (640, 240)  # pixels
SCALE = 120  # pixels per metre
GROUND = 200  # pixel row of the floor
_SKY, _FLOOR, _MARK, _BODY, _HEAD = "#dfe9f3", "#c9b79c", "#a08c6c", "#d08a3e", "#b86f26"


def draw(model: mujoco.MjModel, data: mujoco.MjData, text: str = "") -> np.ndarray:
    """One frame `[height, width, 3]` uint8 of the posed `data`, the camera following the torso."""
    image = Image.new("RGB", SIZE, _SKY)
    pen = ImageDraw.Draw(image)
    centre = data.body("torso").xpos[0]
    pen.rectangle([0, GROUND, *SIZE], fill=_FLOOR)
    for metre in range(int(centre) - 4, int(centre) + 5):
        column = SIZE[0] / 2 + (metre - centre) * SCALE
        pen.line([column, GROUND, column - 12, SIZE[1]], fill=_MARK, width=3)
        pen.text((column - 10, SIZE[1] - 14), f"{metre} m", fill=_MARK)
    for geom in range(model.ngeom):
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE:
            head = model.geom(geom).name == "head"
            _capsule(pen, model, data, geom, centre, _HEAD if head else _BODY)
    pen.text((8, 6), text, fill="#333333")
    return np.asarray(image)


def _capsule(pen, model, data, geom, centre, colour):
    radius, half = model.geom_size[geom, :2]
    axis = data.geom_xmat[geom].reshape(3, 3)[:, 2] * half
    ends = [data.geom_xpos[geom] + side * axis for side in (-1, 1)]
    points = [(SIZE[0] / 2 + (end[0] - centre) * SCALE, GROUND - end[2] * SCALE) for end in ends]
    pen.line([*points[0], *points[1]], fill=colour, width=round(2 * radius * SCALE))
    for x, y in points:
        r = radius * SCALE
        pen.ellipse([x - r, y - r, x + r, y + r], fill=colour)


def write_video(path: Path, qpos: np.ndarray, rewards: np.ndarray, dt: float) -> None:
    """Draws an episode.

    Args:
      path: where to write; the suffix decides the format, .mp4 or .gif.
      qpos: `[T, 9]` generalised positions, in MuJoCo's order.
      rewards: `[T]`, shown as a running sum.
      dt: seconds per step, which makes the playback real time.
    """
    model = load_model()
    data = mujoco.MjData(model)
    totals = np.cumsum(rewards)
    gif = path.suffix == ".gif"
    options = {"duration": 1000 * dt, "loop": 0} if gif else {"fps": 1 / dt, "macro_block_size": 2}
    with warnings.catch_warnings(), imageio.get_writer(path, **options) as writer:
        # The encoder is a process of its own, started at once and fed by a pipe: no code of ours runs in the fork.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        for t, pose in enumerate(qpos):
            data.qpos[:] = pose
            mujoco.mj_kinematics(model, data)
            writer.append_data(draw(model, data, f"{t * dt:5.1f} s   return {totals[t]:z.0f}"))
