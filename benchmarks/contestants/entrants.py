"""Which trainers race, with which settings; it imports none of them."""

import importlib.util
from typing import NamedTuple

from contestants.workloads import PPO, TEXT, TWO_THOUSAND

SUPERVISED = "MLP", "CNN", TEXT


class Entrant(NamedTuple):
    trainer: str
    settings: str
    place: str
    """Module and function in this package, as `keras_fit:usual`."""
    races: tuple[str, ...]
    packages: tuple[str, ...] = ()
    """That are needed, as they are imported."""

    @property
    def name(self):
        return f"{self.trainer}, {self.settings}"

    @property
    def missing(self):
        """Packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


LIBRARY = "Entracte"
ENTRANTS = (
    Entrant(LIBRARY, "`fit`", "library_runs:usual", (*SUPERVISED, *PPO, TWO_THOUSAND)),
    Entrant(LIBRARY, "`fit` of `repeated`", "library_runs:repeated", ("MLP", *PPO)),
    Entrant("Flax NNX", "`nnx.jit`, batch by batch", "flax_loops:usual", SUPERVISED),
    Entrant("Flax NNX", "`nnx.cached_partial`", "flax_loops:cached", SUPERVISED),
    Entrant("Keras on JAX", "defaults", "keras_fit:usual", SUPERVISED, ("keras",)),
    Entrant(
        "Keras on JAX",
        "`steps_per_execution` of an epoch",
        "keras_fit:whole_epochs",
        SUPERVISED,
        ("keras",),
    ),
    Entrant(
        "PyTorch",
        "`DataLoader`, eager",
        "torch_loops:plain",
        (*SUPERVISED, TWO_THOUSAND),
        ("torch",),
    ),
    Entrant("PyTorch", "batches indexed, eager", "torch_loops:indexed", SUPERVISED, ("torch",)),
    Entrant("PyTorch", "`torch.compile`", "torch_loops:compiled", SUPERVISED, ("torch",)),
    Entrant("Lightning", "defaults", "lightning_fit:usual", SUPERVISED, ("torch", "lightning")),
    Entrant(
        "Lightning",
        "no logger, bar, checkpoints",
        "lightning_fit:nothing_else",
        SUPERVISED,
        ("torch", "lightning"),
    ),
    Entrant(
        "Stable-Baselines3",
        "defaults",
        "stable_baselines:usual",
        tuple(PPO),
        ("torch", "stable_baselines3"),
    ),
    Entrant(
        "Stable-Baselines3",
        "one thread",
        "stable_baselines:one_thread",
        tuple(PPO),
        ("torch", "stable_baselines3"),
    ),
    Entrant("Rejax", "128 evaluations", "rejax_ppo:usual", tuple(PPO), ("rejax", "gymnax")),
    Entrant("Rejax", "no evaluation", "rejax_ppo:no_evaluation", tuple(PPO), ("rejax", "gymnax")),
    Entrant("PureJaxRL's design", "one function", "pure_ppo:whole_training", tuple(PPO)),
)
