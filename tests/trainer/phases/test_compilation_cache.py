"""The persistent compilation cache."""

import subprocess
import sys

CHILD = """
import sys
import jax, jax.monitoring, jax.numpy as jnp
import trainer
hits = []
jax.monitoring.register_event_listener(
    lambda name, **_: hits.append(name) if name == "/jax/compilation_cache/cache_hits" else None
)
trainer.cache_compilations(sys.argv[1])
def shrink(state, data):
    return state.replace(params=state.params * 0.5), None, {"size": state.params}
state = trainer.TrainState.create(params=jnp.float32(1), rng=jax.random.key(0))
trainer.fit(state, trainer.Phase("shrink", shrink), epochs=1)
print(len(hits))
"""


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    hits = [
        int(
            subprocess.run(
                [sys.executable, "-c", CHILD, str(tmp_path / "cache")],
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            ).stdout
        )
        for _ in range(2)
    ]
    assert hits[0] == 0
    assert hits[1] > 0
    assert any((tmp_path / "cache").iterdir())
