"""How Energon is told to make batches of our pairs; imported by its worker processes too."""

from typing import Any

import torch
from megatron.energon import Cooker, DefaultTaskEncoder, Sample, SampleDecoder, basic_sample_keys, stateless
from megatron.energon.edataclass import edataclass
from torch.utils.data import default_collate

from benchmarks.stream_data import SHAPES


@edataclass
class Pair(Sample):
    arrays: dict[str, torch.Tensor]


@stateless
def cook(sample: dict[str, Any]) -> Pair:
    arrays = {name: torch.from_numpy(sample[f"{name}.npy"]) for name in SHAPES}
    return Pair(**basic_sample_keys(sample), arrays=arrays)


class PairEncoder(DefaultTaskEncoder[Pair, Pair, Any, Any]):
    cookers = (Cooker(cook),)
    decoder = SampleDecoder()

    @stateless
    def batch(self, samples: list[Pair]) -> dict[str, Any]:
        # Energon's keys bear the tar's name before the sample's.
        keys = [sample.__key__.rpartition("/")[2] for sample in samples]
        return {"keys": keys, **default_collate([sample.arrays for sample in samples])}

    def encode_batch(self, batch: Any) -> Any:
        return batch
