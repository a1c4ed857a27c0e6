#!/usr/bin/env bash
# safetensors.numpy writes transposes and column slices with the values in the wrong places, and says nothing.
# Guess: save_file copies a view as numpy's own tobytes/save does, or refuses it (safetensors.torch raises ValueError).
# Truth (safetensors 0.8.0): it takes the view's shape but the bytes as they lie in the buffer. kernel.T is stored as the
#   untransposed values under the transposed shape; w[:, :2] as the first values of w. For a square matrix nothing
#   looks odd. The docstring asks for contiguous tensors; nothing checks. safetensors.flax with jax arrays is right.
# Who: exporting JAX kernels (in, out) as torch weights (out, in), splitting fused qkv columns, or saving
#   transposed LoRA factors: the file loads everywhere and the model is scrambled. np.ascontiguousarray first.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q safetensors==0.8.0 numpy==2.4.6
cd "$tmp"; "$tmp/v/bin/python" - <<'EOF'
import numpy as np, safetensors
from safetensors.numpy import load_file, save_file
print("safetensors", safetensors.__version__, "numpy", np.__version__)
kernel = np.arange(12, dtype=np.float32).reshape(3, 4)
views = {"transpose": kernel.T, "columns": kernel[:, :2], "every_other": kernel[:, ::2], "rows": kernel[:2]}
save_file(views, "w.safetensors")
stored = load_file("w.safetensors")
for name, want in views.items():
    same = np.array_equal(stored[name], want)
    print(f"{name:12s} saved {want.tolist()} -> read {stored[name].tolist()} {'same' if same else 'DIFFERENT'}")
    assert stored[name].shape == want.shape and same == (name == "rows")
assert np.array_equal(stored["transpose"].ravel(), kernel.ravel())  # the bytes of the untransposed kernel
save_file({k: np.ascontiguousarray(v) for k, v in views.items()}, "w.safetensors")
assert all(np.array_equal(load_file("w.safetensors")[k], v) for k, v in views.items())
print("after np.ascontiguousarray: all the same")
EOF
