#!/usr/bin/env bash
# A wandb run that was asked to be silent still writes three lines to stderr, if the process has imported an LLM client.
# Guess: wandb.init(settings=wandb.Settings(silent=True)) writes nothing on the terminal, whatever else the process imports.
# Truth (wandb 0.31.0): the run's own lines are gone, but init looks through sys.modules for openai and the like, and recommends
#   another package (Weave) in three lines that follow the process's settings, not the run's; WANDB_DISABLE_WEAVE=true ends it.
#   As each line is written once a process, a test of "silence" passes or fails by what was imported before it.
# Who: trainers that log to wandb and ask a judge over openai's client; programs whose output others read.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q wandb==0.31.0 openai==3.57.0
cd "$tmp"; export WANDB_MODE=offline WANDB_ERROR_REPORTING=false WANDB_DIR=$tmp
cat > log.py <<'EOF'
import sys
import wandb
if "openai" in sys.argv:
    import openai
run = wandb.init(project="p", settings=wandb.Settings(silent=True, console="off"))
run.log({"x": 1.0})
run.finish()
EOF
"$tmp/v/bin/python" -c "import wandb; print('wandb', wandb.__version__)"
"$tmp/v/bin/python" log.py > alone 2>&1
"$tmp/v/bin/python" log.py openai > beside 2>&1
WANDB_DISABLE_WEAVE=true "$tmp/v/bin/python" log.py openai > off 2>&1
echo "lines of a silent run: alone $(wc -l < alone), with openai imported $(wc -l < beside), with WANDB_DISABLE_WEAVE $(wc -l < off)"
cat beside
[ "$(wc -l < alone) $(wc -l < off)" = "0 0" ] && grep -q Weave beside
# Seen:
# wandb 0.31.0
# lines of a silent run: alone 0, with openai imported 3, with WANDB_DISABLE_WEAVE 0
# wandb: Detected [openai] in use.
# wandb: Use W&B Weave for improved LLM call tracing. Install Weave with `pip install weave` then add `import weave` to the top ...
# wandb: For more information, check out the docs at: ...
