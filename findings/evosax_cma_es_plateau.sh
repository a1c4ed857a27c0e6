#!/usr/bin/env bash
# evosax's CMA-ES stops searching where all candidates are equally good: its step falls to a tenth in 10 generations, and to 1e-5 in 50.
# Guess: rank-based selection among equals is selection at random: the weights sum to 1 as always, mean and step size wander without a trend.
# Truth (evosax 0.3.2): equals share their mean rank, cut down to an integer, and all get the weight of that one place. For 16 alike it is place
#   8, the last that weighs more than nothing: 16 times 0.009, where 1 is due. The mean then moves by a fraction of what the control of the
#   step size expects of chance, which takes that for steps that are too large, and shrinks them, generation for generation, until nothing
#   can be found any more. With SimpleES each place of the better half weighs 1/8, so 16 alike weigh 2, and the search blows up
#   instead. Two levels of fitness, solved or not, have the same fault, by the size of each: with one solved of 16 the weights in use
#   sum to 0.33. No warning. Noise of 1e-6 on the fitness breaks the ties, and the width then wanders as guessed.
# Who: evolution on success or failure, on win rates over few games, on preferences with ties, on returns that are 0 until a first reward:
#   "CMA-ES does not find it" is then said of this, and a comparison with SimpleES is one of shrinking with growing.
# Seen, 16 candidates, plateau in 10 dimensions, start with step 1, median deviation of the candidates after 10, 50 and 200 generations: CMA-ES
#   0.12, 1.1e-05, 5e-09 (0.70, 0.87, 3.3 with the noise), SimpleES 1.3, 6.3, 2000 (0.93, 0.86, 0.62). In 2 dimensions with a goal at
#   x > 4, 200 generations: CMA-ES meets it in 0 of 20 runs, with the noise in 13.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8 numpy==2.4.6
"$tmp/v/bin/pip" install -q --no-compile --no-deps evosax==0.3.2
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import jax, jax.numpy as jnp, numpy as np
from evosax.algorithms import CMA_ES, SimpleES
print("evosax", version("evosax"), "jax", jax.__version__)
POPULATION, GENERATIONS, RUNS = 16, 200, 20

def searches(algorithm, dims, goal, noise):
    """RUNS searches side by side: how many ever meet the goal, and the candidates' deviation after 10, 50 and all generations."""
    search = algorithm(population_size=POPULATION, solution=jnp.zeros(dims))
    params = search.default_params

    def run(key):
        def generation(state, key):
            ask, tell, draw = jax.random.split(key, 3)
            candidates, state = search.ask(ask, state, params)
            met = candidates[:, 0] > goal
            fitness = jnp.where(met, 0.0, 1.0) + noise * jax.random.normal(draw, (POPULATION,))  # evosax minimises
            return search.tell(tell, candidates, fitness, state, params)[0], (met.any(), candidates.std(0).mean())
        first, key = jax.random.split(key)
        return jax.lax.scan(generation, search.init(first, jnp.zeros(dims), params), jax.random.split(key, GENERATIONS))[1]

    met, width = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), RUNS))
    return int(met.any(1).sum()), np.median(np.asarray(width), axis=0)[[9, 49, GENERATIONS - 1]]

shares = np.asarray(CMA_ES(population_size=POPULATION, solution=jnp.zeros(10)).default_params.weights)
print(f"CMA-ES, weights of the better half {shares[:8].round(3)}, sum {shares[:8].sum():.3f}; of 16 equals {16 * shares[7]:.3f}")
assert abs(shares[:8].sum() - 1) < 1e-3 and 16 * shares[7] < 0.3
seen = {}
for algorithm in (CMA_ES, SimpleES):
    for name, noise in (("ties", 0.0), ("ties broken by noise", 1e-6)):
        _, width = searches(algorithm, 10, np.inf, noise)
        met, _ = searches(algorithm, 2, 4.0, noise)
        seen[algorithm.__name__, noise] = met, width
        print(f"{algorithm.__name__:9s} {name:21s} deviation on the plateau after 10, 50 and {GENERATIONS} generations", *(f"{w:.2g}" for w in width),
            f"  goal met in {met} of {RUNS} runs")
assert seen["CMA_ES", 0.0][1][0] < 0.2 and seen["CMA_ES", 0.0][1][1] < 1e-4 and seen["CMA_ES", 1e-6][1].min() > 0.2, seen
assert seen["CMA_ES", 0.0][0] <= 3 and seen["CMA_ES", 1e-6][0] >= 8, seen
assert seen["SimpleES", 0.0][1][2] > 10 and seen["SimpleES", 1e-6][1][2] < 2, seen
EOP
