"""Learning rates that fall from the head down to the patches, by a factor a layer (BEiT, MAE's fine-tuning)."""

from typing import Any

from pipeline.errors import ConfigError


def layers_of(model: Any) -> list[list[str]]:
    """Names of the model's parameters by layer, from the patches up; the decoder's are in none.

    Another model than FusMAE says them by a method `layers()`; ConfigError when it has none.
    """
    from fusmae import FusMAE

    if not isinstance(model, FusMAE):
        if not hasattr(model, "layers"):
            raise ConfigError(f"{type(model).__name__} does not say its layers; write finetune.layer_decay=1")
        told: list[list[str]] = model.layers()
        return told
    names = [name for name, _ in model.named_parameters()]
    prefixes = ["encoder.fusion."] if model.encoder.fusion is not None else []
    prefixes += [f"encoder.blocks.{number}." for number in range(len(model.encoder.blocks))]
    first = ("projections.", "positions.", "encoder.global_token_D")
    return [
        [name for name in names if name.startswith(first)],
        *([name for name in names if name.startswith(prefix)] for prefix in prefixes),
        [name for name in names if name.startswith("encoder.norm.")],
    ]


def parameter_groups(model: Any, head: Any, *, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups with `scale`, by which a group's learning rate is multiplied.

    The head and the last layer, the norm, have 1, each layer below `layer_decay` times that of the one above. Matrices
    decay, all else does not.
    """
    scales: dict[str, float] = {}
    if layer_decay < 1:
        layers = layers_of(model)
        for depth, names in enumerate(layers):
            scales |= dict.fromkeys(names, layer_decay ** (len(layers) - 1 - depth))
    tables: set[str] = getattr(model, "no_weight_decay", set)()
    groups: dict[tuple[float, float], list[Any]] = {}
    own = [(name, parameter, scales.get(name, 1.0), name in tables) for name, parameter in model.named_parameters()]
    own += [(name, parameter, 1.0, False) for name, parameter in head.named_parameters()]
    for _, parameter, scale, is_table in own:
        is_matrix = sum(size > 1 for size in parameter.shape) > 1 and not is_table
        groups.setdefault((scale, weight_decay if is_matrix else 0.0), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "scale": scale} for (scale, decay), parameters in groups.items()
    ]
