"""What an import costs: no library is imported before something needs it."""

import subprocess
import sys

SCRIPT = """
import sys
import flax.nnx, jax, jax.numpy, optax
before = set(sys.modules)
import hooks, models, trainer
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - sys.stdlib_module_names - {module.partition(".")[0] for module in before}))
"""


def test_importing_all_of_it_imports_few_other_libraries():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["hooks", "models", "trainer", "xxhash"]
