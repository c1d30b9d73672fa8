"""What an import costs: no library is imported before something needs it."""

import subprocess
import sys

MOST = 500
"""Modules of the three packages that an import loads: each takes about 0.4 ms of CPU time."""

SCRIPT = """
import sys
import flax.nnx, jax, jax.numpy, optax
before = set(sys.modules)
import hooks, models, trainer
new = set(sys.modules) - before
tops = {name.partition(".")[0] for name in new}
print(*sorted(tops - sys.stdlib_module_names - {name.partition(".")[0] for name in before}))
print(sum(name.partition(".")[0] in ("hooks", "models", "trainer") for name in new))
"""


def test_importing_all_of_it_imports_few_other_libraries():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    libraries, own = run.stdout.splitlines()
    assert libraries.split() == ["hooks", "models", "trainer", "xxhash"]
    assert 100 < int(own) <= MOST
