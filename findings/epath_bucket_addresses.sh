#!/usr/bin/env bash
# An address in a bucket, as etils.epath has it: resolve() makes it a folder of this machine, and walk() forgets the bucket.
# Guess: epath.Path("gs://bucket/run") is pathlib over buckets, so resolve(), which everybody writes before handing a folder to Orbax
#   (relative paths are refused there), leaves an address as it is; walk() gives paths that can be opened; rglob() works, or slowly.
# Truth (etils 1.15.0, orbax-checkpoint 0.12.8, gcsfs 2026.10.1, Python 3.11): resolve() is WORKING_FOLDER/gs:/bucket/run: mkdir and
#   write_text work there, on this machine's disk, and Orbax makes its folders there too before its save ends with "Invalid file path" of a
#   gs:// below the working folder, which nobody wrote. walk() gives "bucket/run/...", without gs://, which is
#   a relative path here. rglob() raises NotImplementedError. iterdir() is right.
# Who: whoever gives the checkpoints' folder of a training run a gs:// address.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"; kill %1 2>/dev/null || true' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 etils==1.15.0 orbax-checkpoint==0.12.8 gcsfs==2026.10.1 gcp-storage-emulator==2026.7.19
cd "$tmp"
cat > address.py <<'EOF'
import logging, os, time
from pathlib import Path
os.environ["JAX_PLATFORMS"] = "cpu"
from etils import epath
import jax.numpy as jnp, orbax.checkpoint as ocp
logging.disable(logging.WARNING)
run = epath.Path("gs://bucket/run")
print("resolved", str(run.resolve()).replace(os.getcwd(), "HERE"))
checkpointer = ocp.StandardCheckpointer()
try:
    checkpointer.save(run.resolve() / "1", {"w": jnp.ones(3)})
    checkpointer.wait_until_finished()
except ValueError as error:
    print("save", "Invalid file path" in str(error), f"{os.getcwd()}/gs://bucket" in str(error))
print("folders here", Path("gs:/bucket/run").is_dir())
for _ in range(100):
    try:
        (run / "inner").mkdir(parents=True, exist_ok=True)
        break
    except OSError:
        time.sleep(0.2)
(run / "inner" / "a.txt").write_text("a")
print("walk", [str(place / name) for place, _, names in run.walk() for name in names if name])
print("iterdir", [str(path) for path in run.iterdir()])
try:
    list(run.rglob("*"))
except NotImplementedError:
    print("rglob NotImplementedError")
EOF
"$tmp/v/bin/python" -m gcp_storage_emulator start --port 9377 --in-memory --default-bucket bucket >/dev/null 2>&1 &
STORAGE_EMULATOR_HOST=http://localhost:9377 "$tmp/v/bin/python" address.py 2>stderr | tee seen || { cat stderr; exit 1; }
diff seen - <<'EOF'
resolved HERE/gs:/bucket/run
save True True
folders here True
walk ['bucket/run/inner/a.txt']
iterdir ['gs://bucket/run/inner']
rglob NotImplementedError
EOF
