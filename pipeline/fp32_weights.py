"""The fp32 weights of a model, of which each rank holds pieces: copied at once, put together while training goes on."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Piece(NamedTuple):
    """Values of one weight that follow each other."""

    name: str
    start: int
    """Of the first, in the flattened weight."""
    values: Any
    """fp32, one dimension."""


@dataclass(kw_only=True)
class WeightShare:
    """One rank's pieces; those of all ranks are all weights, each value once."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of every weight, in the model's order, whichever rank holds it."""
    pieces: list[Piece] = field(default_factory=list)


def put_together(share: WeightShare, group: Any) -> dict[str, Any]:
    """All weights by name on rank 0, empty elsewhere; the pieces are on the CPU. A collective of `group`.

    A weight that rank 0 holds whole is not copied.
    """
    import torch
    import torch.distributed as dist

    rank = dist.get_rank()
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, [(p.name, p.start, len(p.values)) for p in share.pieces], group=group)
    if rank:
        for piece in share.pieces:
            dist.send(piece.values, dst=0, group=group)
        return {}
    sizes = {name: torch.Size(shape).numel() for name, shape in share.shapes.items()}
    flat = {p.name: p.values for p in share.pieces if len(p.values) == sizes[p.name]}
    flat |= {name: torch.empty(size, dtype=torch.float32) for name, size in sizes.items() if name not in flat}
    filled = dict.fromkeys(sizes, 0)
    for piece in share.pieces:
        filled[piece.name] += len(piece.values)
        if flat[piece.name] is not piece.values:
            flat[piece.name][piece.start : piece.start + len(piece.values)] = piece.values
    for source, pieces in enumerate(told[1:], start=1):
        for name, start, length in pieces:
            filled[name] += length
            dist.recv(flat[name][start : start + length], src=source, group=group)
    wrong = [name for name, size in sizes.items() if filled[name] != size]
    assert not wrong, f"the ranks hold {filled[wrong[0]]} of the {sizes[wrong[0]]} values of {wrong[0]}"
    return {name: flat[name].view(shape) for name, shape in share.shapes.items()}
