#!/usr/bin/env bash
# gymnax's gymnasium wrapper: the observation that comes with terminated or truncated is the start of the next episode, one that is never played.
# Guess: GymnaxToGymWrapper is a gymnasium.Env: step() returns the observation that the action led to, at an episode's end too, and the next
#   reset() gives the start of the episode that is then played. That is what gymnasium's own environments do.
# Truth (gymnax 1.0.1, gymnasium 1.3.0): gymnax resets within step, and the wrapper hands that on. The last observation of an episode is a
#   fresh start; reset(), which gymnasium's loop calls then, draws another one. Where the action really led is in info["final_observation"]; the
#   single environments of gymnasium have no such key, so nothing written for them looks for it. No warning, and returns and lengths are right.
# Who: time limits. After truncation the value of the last observation is bootstrapped: with Pendulum, whose episodes all end by their limit
#   of 200, it is always the value of a random start: far too low for a pendulum that stands, and replay buffers hold as many transitions that no
#   physics makes. Models of the dynamics learn them too, and reward models and preference pairs see a jump in each segment's last frame.
# Seen with Pendulum, a controller that swings up and balances, 20 episodes, mean height of the tip in the last observation: gymnasium 1.00, gymnax
#   -0.02, its final_observation 1.00. Median jump of the last step: 0.00 and 1.12.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 numpy==2.4.6 gymnasium==1.3.0 six==1.17.0
"$tmp/v/bin/pip" install -q --no-compile --no-deps gymnax==1.0.1
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" -W ignore - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import sys
from unittest.mock import MagicMock
sys.modules |= {name: MagicMock() for name in ("matplotlib", "matplotlib.pyplot", "seaborn")}  # gymnax draws with them, and only draws
import gymnasium, gymnax, numpy as np
from gymnax.wrappers import GymnaxToGymWrapper
print("gymnax", version("gymnax"), "gymnasium", version("gymnasium"))
NAME, EPISODES = "Pendulum-v1", 20

def controller(observation):
    """Pumps energy up to that of the upright pendulum, and balances near it."""
    cosine, sine, speed = (float(x) for x in observation)
    if cosine > 0.9:
        return np.array([np.clip(-12 * np.arctan2(sine, cosine) - 3 * speed, -2, 2)], np.float32)
    return np.array([2.0 if speed * (speed ** 2 / 6 + 5 * (cosine - 1)) < 0 else -2.0], np.float32)

def play(title, env):
    """Last observation of each episode, what info calls the final one, the one before, and the start of the next episode."""
    last, final, starts, before = [], [], [], []
    for episode in range(EPISODES + 1):
        observation, _ = env.reset(seed=0) if episode == 0 else env.reset()
        starts.append(np.asarray(observation))
        if episode == EPISODES:
            break
        ended = False
        while not ended:
            before_it = np.asarray(observation)
            observation, _, terminated, truncated, info = env.step(controller(observation))
            ended = bool(terminated) or bool(truncated)
        assert truncated and not terminated
        last.append(np.asarray(observation)); before.append(before_it); final.append(np.asarray(info.get("final_observation", observation)))
    last, final, before, starts = (np.array(x) for x in (last, final, before, starts))
    jump = np.abs(last - before).max(1)
    print(f"{title:9s} mean height in the last observation {last[:, 0].mean():.2f}, final one in info {final[:, 0].mean():.2f},",
        f"median jump in the last step {np.median(jump):.2f}, equal to the next start in {int((last == starts[1:]).all(1).sum())} of {EPISODES}")
    return last[:, 0].mean(), final[:, 0].mean(), np.median(jump), (last == starts[1:]).all(1).any()

known = play("gymnasium", gymnasium.make(NAME))
wrapped = play("gymnax", GymnaxToGymWrapper(*gymnax.make(NAME)))
assert known[0] > 0.9 and known[2] < 0.1, known
assert wrapped[1] > 0.9 and wrapped[0] < 0.6 and wrapped[2] > 0.5 and not wrapped[3], wrapped
EOP
