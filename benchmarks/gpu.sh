#!/usr/bin/env bash
# Tests and measures the library on a GPU: bash benchmarks/gpu.sh FOLDER [--quick] [--seconds N].
# PYTHON names the interpreter; without it, that of .venv if there is one, or python3.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
folder="${1:?the folder for the results is missing: bash benchmarks/gpu.sh FOLDER [--quick]}"
shift
python="${PYTHON:-}"
if [ -z "$python" ]; then
    if [ -x "$root/.venv/bin/python" ]; then python="$root/.venv/bin/python"; else python=python3; fi
fi
"$python" - <<'PY'
import importlib.util as modules
import sys

needed = "jax flax optax orbax chex tensorboardX xxhash numpy rich psutil sklearn pytest hypothesis"
missing = [name for name in needed.split() if modules.find_spec(name) is None]
if missing:
    sys.exit(
        f"{sys.executable} lacks {', '.join(missing)}: "
        "pip install -c constraints.txt -e '.[examples]' pytest hypothesis 'jax[cuda13]'"
    )
PY
exec "$python" "$root/benchmarks/gpu.py" "$folder" "$@"
