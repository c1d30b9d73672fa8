"""The train state: one immutable pytree with everything that training depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import operator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from trainer.checks.arguments import describe_value
from trainer.checks.pytrees import format_path, is_key, measure_leaves
from trainer.checks.suggestions import suggest_and_list
from trainer.host.rendering.html_tables import render_table

PyTree = Any

DEVICE_FIELDS = ("step", "epoch", "params", "opt_state", "model_state", "rng", "carry")
"""Fields that may enter a jitted function; `stop`, `scores` and `hook_state` are the host part."""


LIVE = "live"
"""Name in a population's carry of bool `[members]`; a member that is not live does not train."""


@struct.dataclass
class TrainState:
    """Everything that training depends on, as one frozen pytree.

    `stop`, `scores` and `hook_state` are the host part: they never enter a jitted function. The
    rest is the device part. A state is never changed in place: `state.replace(params=...)` returns
    a new one.

    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> int(state.replace(step=state.step + 1).step), int(state.step)
    (1, 0)
    """

    step: jax.Array
    """() int32, number of optimizer updates; phases increment it."""
    epoch: jax.Array
    """() int32, number of completed epochs; only `fit` increments it, after the last phase."""
    params: PyTree
    """Parameters, which the optimizer updates."""
    opt_state: optax.OptState
    """State of the optimizer."""
    model_state: PyTree
    """Variables that are not trained, such as batch statistics."""
    rng: jax.Array
    """() typed PRNG key, the root of all randomness; never consumed, only folded (see `key`)."""
    carry: PyTree
    """Data that phases pass from epoch to epoch: environment states, positions, loss scales."""
    stop: bool = False
    """Decision to end the run. Hooks set it, it is saved, and `fit` returns when it is True."""
    scores: dict[str, float] = struct.field(default_factory=dict)
    """Values that hooks computed at this event; hooks after them see them among the metrics."""
    hook_state: dict[str, PyTree] = struct.field(default_factory=dict)
    """State of each stateful hook, by the hook's name."""

    @classmethod
    def create(
        cls,
        *,
        params: PyTree,
        rng: jax.Array,
        opt_state: optax.OptState = (),
        model_state: PyTree = None,
        carry: PyTree = None,
    ) -> TrainState:
        """Create the state at step 0 and epoch 0.

        Args:
            params: pytree of arrays that the optimizer updates.
            rng: () typed key, such as `jax.random.key(seed)`.
            opt_state: result of `optimizer.init(params)`.
            model_state: pytree of variables that are not trained; {} if None.
            carry: pytree that phases pass from epoch to epoch; {} if None.

        Raises:
            TypeError: `rng` is not a single typed key.
        """
        check_key(rng, "rng")
        return cls(
            step=jax.device_put(np.int32(0)),
            epoch=jax.device_put(np.int32(0)),
            params=params,
            opt_state=opt_state,
            model_state={} if model_state is None else model_state,
            rng=rng,
            carry={} if carry is None else carry,
        )

    def key(self, name: str) -> jax.Array:
        """Return the key of this name at this epoch and step, the same inside and outside jit.

        Keys of different names are independent, so a new name changes no other random numbers.
        Names of hooks start with `hook/`.

        >>> state = TrainState.create(params={}, rng=jax.random.key(0))
        >>> bool(state.key("dropout") == state.key("dropout"))
        True
        >>> bool(state.key("dropout") == state.key("noise"))
        False
        """
        return _fold(self.rng, self.epoch, self.step, name_number(name))

    def _repr_html_(self) -> str:
        names = ("params", "model_state", "opt_state", "carry", "hook_state")
        measured = {name: measure_leaves(getattr(self, name)) for name in names}
        rows = [(name, *(f"{n:,}" for n in found)) for name, found in measured.items() if found[0]]
        known = not isinstance(self.epoch, jax.ShapeDtypeStruct)
        place = f", epoch {read_epoch(self)}, step {read_step_count(self):,}" if known else ""
        stopped = ", stopped" if known and np.any(self.stop) else ""
        heads = ("", "leaves", "elements", "bytes")
        return render_table(heads, rows, caption=f"TrainState{place}{stopped}", right=(1, 2, 3))

    if TYPE_CHECKING:

        def replace(self, **changes: Any) -> TrainState:
            """Return a state with these fields changed."""


def _replace(self: TrainState, **changes: Any) -> TrainState:
    """Return a state with these fields changed.

    Raises:
        TypeError: a state has no field of this name.
    """
    try:
        return dataclasses.replace(self, **changes)
    except TypeError:
        fields = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in fields:
                raise TypeError(
                    f"a state has no field {name!r}{suggest_and_list(name, fields)}"
                ) from None
        raise


if not TYPE_CHECKING:
    TrainState.replace = _replace


def require_state(who: str, state: Any) -> None:
    """Check that an argument is a `TrainState`, and not one that is being traced.

    Raises:
        TypeError: it is not.
    """
    if isinstance(state, TrainState):
        if isinstance(state.epoch, jax.core.Tracer):
            raise TypeError(
                f"{who} runs on the host, and jits its phases itself; got a state that is being "
                f"traced: call {who} outside of jax.jit, jax.vmap and jax.grad"
            )
        return
    remedy = "task.init(key, source.example) makes one, or TrainState.create(params=..., rng=...)"
    if isinstance(state, tuple) and state and isinstance(state[0], TrainState):
        remedy = "fit returns (state, history): give the first of the two"
    raise TypeError(f"{who} needs a TrainState first; got {describe_value(state)}: {remedy}")


def check_key(key: Any, name: str = "key") -> None:
    """Check that an argument is a single typed key.

    Raises:
        TypeError: it is not.
    """
    if not is_key(key):
        raise TypeError(
            f"{name} must be a typed key, jax.random.key(seed); got {describe_value(key)}"
        )
    if key.shape:
        raise TypeError(f"{name} must be a single key of shape (); got shape {key.shape}")


@jax.jit
def _fold(rng: jax.Array, epoch: jax.Array, step: jax.Array, name: np.uint32) -> jax.Array:
    """Fold in one jitted call: eager folding takes 20 times as long."""
    key = jax.random.fold_in(rng, epoch)
    key = jax.random.fold_in(key, step)
    return jax.random.fold_in(key, name)


def name_number(name: str) -> np.uint32:
    """Hash a name to 32 bits, the same in every process (fold_in overflows on more)."""
    return np.uint32(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big"))


def data_key(state: TrainState) -> jax.Array:
    """Return the key for the order of this epoch's data, from the root and the epoch alone."""
    return _fold(state.rng, state.epoch, np.int32(0), name_number("data"))


def read_step_count(state: TrainState) -> int:
    """Read the number of updates; for a population, the largest among its members."""
    return int(np.asarray(state.step).max())


def read_epoch(state: TrainState) -> int:
    """Read the number of completed epochs: 3 us, where `int` of a jax array takes 10 to 20."""
    return int(np.asarray(state.epoch))


def read_step_epoch(state: TrainState) -> tuple[int, int]:
    """Read (step, epoch), as records name them."""
    return read_step_count(state), read_epoch(state)


MAX_STEP = 2**31 - 1
"""The largest step that an int32 holds."""


def check_step_limit(steps: int, more: int) -> None:
    """Check that the step counter can hold this many more steps than those taken.

    Beyond the limit the step would turn negative: records would be dropped as outdated, and
    `every_steps` would not fire.

    Raises:
        OverflowError: it cannot.

    >>> check_step_limit(2**31 - 2, 1)
    """
    if steps + more > MAX_STEP:
        raise OverflowError(
            f"state.step is an int32, which counts to {MAX_STEP:,}; this run has taken {steps:,} "
            f"steps and {more:,} more do not fit: begin another run from its parameters "
            "(trainer.load_params), or take larger batches"
        )


def stream_seed(state: TrainState) -> int:
    """Return the seed for data made on the host, in [0, 2**32), from the root key alone."""
    return int(_bits(state.rng))


@jax.jit
def _bits(rng: jax.Array) -> jax.Array:
    """Draw in one jitted call: a stream draws in every epoch, and eagerly this takes several."""
    return jax.random.bits(
        _fold(rng, np.int32(0), np.int32(0), name_number("data")), dtype=jnp.uint32
    )


def strip_host_fields(state: TrainState) -> TrainState:
    """Return the state without its host part, so that it may enter a jitted function."""
    return TrainState(*_device_fields(state), None, {}, {})  # type: ignore[call-arg]


def attach_host_fields(device: TrainState, host: TrainState) -> TrainState:
    """Return a device part with the host part of `host`."""
    fields = (*_device_fields(device), host.stop, host.scores, host.hook_state)
    return TrainState(*fields)


# One getter for all fields: `replace` takes 15 us, and both functions run in every epoch.
_device_fields = operator.attrgetter(*DEVICE_FIELDS)


def fingerprint(state: TrainState) -> str:
    """Hash everything that training depends on: all fields except `scores`.

    Two states with equal fingerprints are equal in every path, dtype, shape and bit.

    Returns:
        The sha256 as 64 hexadecimal digits.

    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> fingerprint(state) == fingerprint(state.replace(scores={"val/loss": 1.0}))
    True
    >>> fingerprint(state) == fingerprint(state.replace(stop=True))
    False
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.replace(scores={})):
        if is_key(leaf):
            described, content = str(leaf.dtype), np.asarray(jax.random.key_data(leaf)).tobytes()
        elif isinstance(leaf, jax.Array | np.ndarray | np.generic):
            described, content = f"{leaf.dtype}{leaf.shape}", np.asarray(leaf).tobytes()
        else:
            described, content = type(leaf).__name__, repr(leaf).encode()
        digest.update(f"{format_path(path)}|{described}|{len(content)}|".encode() + content)
    return digest.hexdigest()
