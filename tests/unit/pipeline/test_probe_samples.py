"""Which samples of a split are probed, and how they are shared out and kept."""

import numpy as np
import pytest

from pipeline.data_settings import DataSettings
from pipeline.errors import DataError
from pipeline.probe_samples import Chosen, KeptSamples, choose, choose_from
from sharding.bands import presence_mask
from tests.unit.pipeline.small_shards import Made

S1, S2 = ("VV", "VH"), ("B02", "B8A")


class _Table:
    """Records as `SampleTable` gives them."""

    def __init__(self, labels: np.ndarray, presence: int) -> None:
        self._records = np.zeros(len(labels), [("labels", "<u8"), ("presence", "<u8")])
        self._records["labels"] = labels
        self._records["presence"] = presence
        self.asked: set[int] = set()

    def __len__(self) -> int:
        return len(self._records)

    def records(self, samples: np.ndarray) -> np.ndarray:
        self.asked |= set(samples.tolist())
        return self._records[samples]


def _chosen(labels: np.ndarray, most: int, presence: int = presence_mask(S1 + S2)) -> list[int]:
    return choose_from(_Table(labels, presence), (S1, S2), most).tolist()  # type: ignore[arg-type]


def test_every_stretch_of_a_split_gives_as_many_samples() -> None:
    chosen = np.array(_chosen(np.ones(16_000), 160))
    assert np.bincount(chosen // 1000).tolist() == [10] * 16
    assert (chosen % 1000 < 10).all() and (np.diff(chosen) > 0).all()


def test_only_labelled_samples_are_chosen_and_a_stretch_without_is_made_up_for() -> None:
    labels = np.zeros(1600)
    labels[300::3] = 4
    chosen = np.array(_chosen(labels, 200))
    assert len(chosen) == 200 and (labels[chosen] != 0).all()


def test_all_there_are_are_taken_where_more_are_asked_for() -> None:
    labels = np.arange(40) % 2
    assert _chosen(labels, 1000) == list(range(1, 40, 2))
    assert _chosen(np.zeros(40), 10) == []


def test_samples_without_a_band_of_a_modality_are_left_out() -> None:
    assert _chosen(np.ones(40), 10, presence_mask(("VH", "B8A"))) != []
    assert _chosen(np.ones(40), 10, presence_mask(S1)) == []


def test_no_more_of_the_index_is_read_than_needed() -> None:
    table = _Table(np.ones(1_000_000), presence_mask(S1 + S2))
    assert len(choose_from(table, (S1, S2), 100)) == 100  # type: ignore[arg-type]
    assert len(table.asked) <= 16 * 256


def test_shares_of_any_number_of_ranks_are_the_chosen_samples_in_order(made: Made) -> None:
    data = DataSettings(url=made.url)
    chosen = choose(data, made.manifest, "train", (S1, S2), 13)
    assert len(chosen.samples) == 13
    expected = [key for number, key in enumerate(sorted(made.samples)) if number in set(chosen.samples.tolist())]
    for world_size in (1, 2, 5, 16):
        keys = []
        for rank in range(world_size):
            kept = KeptSamples(data, (chosen,), 4, rank, world_size)
            (batches,) = kept.batches()
            assert kept.batches()[0] is batches, "read once"
            keys += [key for batch in batches for key in batch.keys]
            kept.close()
        assert keys == expected


def test_kept_samples_stay_as_they_were_read(made: Made) -> None:
    every = Chosen(split="train", samples=np.arange(20))
    kept = KeptSamples(DataSettings(url=made.url), (every,), 3, 0, 1)
    for batch in kept.batches()[0]:
        for place, key in enumerate(batch.keys):
            for spec in made.manifest.arrays:
                assert (batch.arrays[spec.name][place].numpy() == made.full(key, spec)).all()
    kept.close()


def test_samples_that_could_not_be_read_are_read_again(made: Made) -> None:
    (shard, *_) = sorted((made.root / "shards").glob("*.tar"))
    content = shard.read_bytes()
    shard.write_bytes(bytes(len(content)))
    kept = KeptSamples(DataSettings(url=made.url), (Chosen(split="train", samples=np.arange(4)),), 4, 0, 1)
    with pytest.raises(DataError, match="CRC-32C"):
        kept.batches()
    shard.write_bytes(content)
    while True:
        try:
            (batches,) = kept.batches()
            break
        except DataError:
            continue  # begun before the shard was put back
    assert len(batches[0]) == 4
    kept.close()


def test_split_without_a_usable_sample_is_refused(made: Made) -> None:
    with pytest.raises(DataError, match="has no sample with labels and all modalities"):
        choose(DataSettings(url=made.url), made.manifest, "train", (S1, ("DEM",)), 5)
