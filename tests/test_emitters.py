"""Laws of bits that hold as users compile, but not as most tests do, to be faster."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

TESTS = Path(__file__).parent


@pytest.mark.skipif(jax.__version_info__ >= (0, 12), reason="all tests compile as users do")
def test_marked_tests_pass_in_a_process_that_compiles_as_users_do():
    files = [str(f) for f in TESTS.rglob("test_*.py") if "\n@pytest.mark.emitters" in f.read_text()]
    environ = {**os.environ, "EMITTERS_OF_USERS": "1", "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "emitters", *files]
    ran = subprocess.run(
        command, cwd=TESTS.parent, env=environ, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
