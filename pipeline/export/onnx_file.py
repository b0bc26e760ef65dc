"""The encoder with its normalisation as an ONNX graph, for a given set of sensors."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from pipeline.export.fusmae_inference import FusMAE
from pipeline.export.source import Source

OPSET: Final = 18
_LARGEST: Final = 1_900_000_000
"""Bytes of weights up to which a graph is one file; protobuf ends at 2 GiB."""


def graph_name(sensors: Sequence[str], all_sensors: Sequence[str]) -> str:
    """File name of the graph of these sensors."""
    return "model.onnx" if tuple(sensors) == tuple(all_sensors) else f"model_{'+'.join(sensors)}.onnx"


def write_onnx(source: Source, sensors: Sequence[str], folder: Path) -> str:
    """Write the graph into `folder` and return its name.

    Inputs: each sensor's images, (B, C, S, S) float32, as `FusMAE` takes them, optical ones without radiometric offset.
    Outputs: `features` (B, D), and `tokens_SENSOR` (B, N, D) of each.
    """
    model = source.encoder()
    graph = _Graph(model, sensors).eval()
    size = model.image_size
    images = [torch.zeros(2, len(model.bands[name]), size, size) for name in sensors]
    batch = torch.export.Dim("batch")
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself, and that all sensors share one batch
        program = torch.onnx.export(
            graph,
            (images,),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(sensors),
            output_names=["features", *(f"tokens_{name}" for name in sensors)],
            dynamic_shapes={"images": [{0: batch} for _ in sensors]},
            verbose=False,
        )
    assert program is not None
    _forget_where_it_was_made(program.model)
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    name = graph_name(sensors, list(model.bands))
    program.save(str(folder / name), external_data=num_bytes > _LARGEST)
    return name


class _Graph(nn.Module):
    """Tensors in, tensors out."""

    def __init__(self, model: FusMAE, sensors: Sequence[str]) -> None:
        super().__init__()
        self.model, self.sensors = model, tuple(sensors)

    def forward(self, images: list[Tensor]) -> tuple[Tensor, ...]:
        tokens = self.model.tokens(dict(zip(self.sensors, images, strict=True)))
        features_BD = torch.cat([tokens[name] for name in tokens], dim=1).mean(1)
        return features_BD, *(tokens[name] for name in self.sensors)


def _forget_where_it_was_made(model: Any) -> None:
    """Drop stack traces, which hold paths of this machine, from nodes and values."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
