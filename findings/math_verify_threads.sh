#!/usr/bin/env bash
# math-verify raises ValueError in every thread but the main one, raise_on_error=False or not.
# Guess: parse and verify are plain functions with raise_on_error=False (the default): in a thread they work, or give [] and False.
# Truth (math-verify 0.9.0): their timeouts use signal.alarm, which only the main thread may set, so both raise ValueError elsewhere, for
#   any input. parsing_timeout=None for parse and timeout_seconds=None for verify work there, without any limit of time; and
#   the message of verify names parse's argument, which verify does not have.
# Who: reward functions run in a thread pool or by asyncio.to_thread: every reward fails, or is 0 where the caller catches exceptions;
#   without timeouts one hard expression holds a thread for good, so use processes.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2 sympy==1.14.0
cd "$tmp"; "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from math_verify import parse, verify
print("math-verify", version("math-verify"))
half, other = parse("$\\frac{1}{2}$"), parse("$0.5$")
assert half and other and verify(half, other)
print("main thread: parse gives", half, "and verify", verify(half, other))

def there(f, *args, **given):
    with ThreadPoolExecutor(1) as pool:
        try:
            out = pool.submit(f, *args, **given).result()
        except Exception as e:
            out = f"{type(e).__name__}: {e}"
    print(f"other thread: {f.__name__} with {given or 'defaults'} gives {out if not isinstance(out, str) else out[:220]}")
    return out

for given in ({}, {"raise_on_error": False}):
    assert there(parse, "$\\frac{1}{2}$", **given).startswith("ValueError: Math-Verify 'parse' function doesn't support threaded")
    said = there(verify, half, other, **given)
    assert said.startswith("ValueError: Math-Verify doesn't support threaded") and "parsing_timeout=None" in said
assert there(parse, "$\\frac{1}{2}$", parsing_timeout=None) == half
assert there(verify, half, other, timeout_seconds=None) is True
assert there(verify, half, other, parsing_timeout=None).startswith("TypeError")
EOF
