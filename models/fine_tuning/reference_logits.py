"""A network beside a frozen reference, for losses that compare the two."""

from __future__ import annotations

from typing import Any

import jax

from models.argument_checks import require_fit
from models.fine_tuning.lora import BASE
from models.network import Network, PyTree


def with_reference(
    network: Network,
    reference: Network,
    params: PyTree | None = None,
    model_state: PyTree | None = None,
) -> Network:
    """Return a network that also computes the logits of a frozen reference, in every step.

    Its outputs are `{"logits", "reference_logits"}`, which `losses.dpo` reads. Its model state is
    `{"network": ..., "reference": {"params", "model_state"}}`: the reference's variables are saved
    with the state, and never change. Where the data fit in memory, `trainer.add_reference` computes
    the reference once instead, and a step takes two thirds of the time.

    Args:
        network: what is trained.
        reference: another network for the same inputs, often the same network.
        params: the reference's parameters, which are not copied; None: the base of a network of
            `lora`, of which there is then no second copy.
        model_state: the reference's other variables; None for none.

    Raises:
        TypeError: one of them is no network.
        ValueError: from `init`, the variables do not fit the reference, or there is no base.

    >>> import models
    >>> network = models.mlp(classes=2, hidden=())
    >>> inputs = jax.numpy.ones((4, 3))
    >>> trained, _ = network.init(jax.random.key(0), inputs)
    >>> both = with_reference(models.pretrained(network, trained), network, trained)
    >>> params, model_state = both.init(jax.random.key(1), inputs)
    >>> outputs, _ = both.apply(params, model_state, inputs, key=None, train=True)
    >>> sorted(outputs), bool((outputs["logits"] == outputs["reference_logits"]).all())
    (['logits', 'reference_logits'], True)
    """
    for one in (network, reference):
        if not all(callable(getattr(one, name, None)) for name in ("init", "apply")):
            raise TypeError(
                "with_reference takes two networks, such as models.transformer(...); got "
                f"{one!r:.100}"
            )
    frozen = {"params": params, "model_state": {} if model_state is None else model_state}

    def init(key: jax.Array, example: PyTree) -> tuple[PyTree, PyTree]:
        trained, variables = network.init(key, example)
        if params is None and BASE not in variables:
            raise ValueError(
                "with_reference needs the reference's params, unless the network is one of "
                "models.lora, whose base is the reference; pass with_reference(network, "
                "reference, params)"
            )
        found = frozen if params is not None else {**frozen, "params": variables[BASE]}
        wanted = jax.eval_shape(reference.init, key, example)
        remedy = "pass the variables of the reference"
        for name, shapes in zip(("params", "model_state"), wanted, strict=True):
            require_fit(f"with_reference {name}", shapes, found[name], remedy=remedy)
        kept = {} if params is None else {"reference": frozen}
        return trained, {"network": variables, **kept}

    def apply(
        params: PyTree, model_state: PyTree, inputs: PyTree, *, key: jax.Array | None, train: bool
    ) -> tuple[PyTree, PyTree]:
        variables: Any = model_state["network"]
        logits, after = network.apply(params, variables, inputs, key=key, train=train)
        beside = model_state.get("reference", {"params": variables.get(BASE), "model_state": {}})
        compared, _ = reference.apply(
            beside["params"], beside["model_state"], inputs, key=None, train=False
        )
        outputs = {"logits": logits, "reference_logits": jax.lax.stop_gradient(compared)}
        return outputs, {**model_state, "network": after}

    return Network(init, apply)
