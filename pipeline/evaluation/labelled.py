"""Which samples of a split have labels, and which of them a probe with few labels may see; from the index alone.

Shape legend: N samples, C classes.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import DataError
from sharding.bands import presence_mask

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pipeline.frozen import FrozenModel

DOMINANT: Final = "dominant_label"
"""The attribute of a sample that names the one class which covers most of it."""
_CHUNK: Final = 4096
"""Records looked at, at a time."""


@dataclass(frozen=True, kw_only=True)
class LabelledSplit:
    """The labelled, complete samples of a split, in the order of the index."""

    split: str
    numbers: "npt.NDArray[np.int64]"
    """(N,): their numbers in the split, rising."""
    keys: tuple[str, ...]
    labels_NC: "npt.NDArray[np.bool_]"
    """Of a single-label task each row has one class."""
    num_unlabelled: int
    """Samples left out because they have no label."""
    num_incomplete: int
    """Samples left out because they have no band of a modality that others of the data set have."""
    num_ambiguous: int
    """Of a single-label task, samples left out because none of their labels is named as the dominant one."""

    @property
    def about(self) -> dict[str, Any]:
        """As it is stored with the figures."""
        told: dict[str, Any] = {
            "split": self.split,
            "samples": len(self.keys),
            "without_labels": self.num_unlabelled,
            "without_a_modality": self.num_incomplete,
        }
        if self.num_ambiguous:
            told["without_a_dominant_label"] = self.num_ambiguous
        return told | {"keys_sha256": keys_sha256(self.keys)}


def read_labelled(frozen: "FrozenModel", split: str, single_label: bool) -> LabelledSplit:
    """The samples of `split` that have a label and a band of each modality that the data set has at all.

    Raises DataError when the data set has no labels, no such split, or the split no such sample.
    """
    import numpy as np

    from pipeline.stream.exact import open_reader
    from pipeline.stream.stream_config import StreamConfig
    from pipeline.stream.table import bits_of

    manifest = frozen.manifest
    require_labels(frozen)
    manifest.shards_of(split)
    bands = set(manifest.bands)
    given = [bands.intersection(m.bands) for m in frozen.model.config.modalities if m.name in frozen.given]
    masks = [np.uint64(presence_mask(list(own))) for own in given]
    config = StreamConfig(url=frozen.data.url, split=split, global_batch=1, client=frozen.data.client)
    reader = open_reader(config, manifest)
    numbers, keys, labels = [], [], []
    num_unlabelled = num_incomplete = 0
    try:
        for begin in range(0, len(reader.table), _CHUNK):
            here = np.arange(begin, min(begin + _CHUNK, len(reader.table)))
            records = reader.table.records(here)
            labelled = records["labels"] != 0
            complete = np.ones(len(here), np.bool_)
            for mask in masks:
                complete &= (records["presence"] & mask) != 0
            num_unlabelled += int((~labelled).sum())
            num_incomplete += int((labelled & ~complete).sum())
            kept = labelled & complete
            numbers.append(here[kept])
            keys += [key.decode() for key in records["key"][kept].tolist()]
            labels.append(bits_of(records["labels"][kept])[:, : len(manifest.labels)])
    finally:
        reader.close()
    found = LabelledSplit(
        split=split,
        numbers=np.concatenate(numbers),
        keys=tuple(keys),
        labels_NC=np.concatenate(labels),
        num_unlabelled=num_unlabelled,
        num_incomplete=num_incomplete,
        num_ambiguous=0,
    )
    if single_label:
        found = _with_one_label(frozen, found)
    if not len(found.keys):
        raise DataError(
            f"the split '{split}' of {frozen.data.url} has no sample with labels and all modalities "
            f"({num_unlabelled} without labels, {num_incomplete} without a modality, {found.num_ambiguous} of several "
            "labels without a dominant one); choose another split"
        )
    return found


def require_labels(frozen: "FrozenModel") -> None:
    """DataError unless the data set has labels."""
    if not frozen.manifest.labels:
        raise DataError(
            f"the data set {frozen.data.url} has no labels, which this evaluation needs; build one from a labelled "
            "source such as BigEarthNet, and give it as data.url=..."
        )


def _with_one_label(frozen: "FrozenModel", found: LabelledSplit) -> LabelledSplit:
    """The same with one class a sample: its only label, or the one that its metadata names as dominant."""
    import numpy as np

    labels_NC = found.labels_NC.copy()
    several = np.flatnonzero(labels_NC.sum(axis=1) > 1)
    kept = np.ones(len(labels_NC), np.bool_)
    if len(several):
        vocabulary = frozen.manifest.labels
        dominant = _dominant_labels(frozen, found.split)
        for row in several.tolist():
            name = dominant[int(found.numbers[row])]
            kept[row] = name in vocabulary
            labels_NC[row] = [word == name for word in vocabulary]
    return LabelledSplit(
        split=found.split,
        numbers=found.numbers[kept],
        keys=tuple(key for key, is_kept in zip(found.keys, kept.tolist(), strict=True) if is_kept),
        labels_NC=labels_NC[kept],
        num_unlabelled=found.num_unlabelled,
        num_incomplete=found.num_incomplete,
        num_ambiguous=int((~kept).sum()),
    )


def _dominant_labels(frozen: "FrozenModel", split: str) -> list[str | None]:
    """By number in the split, from the shards' metadata."""
    from dataclasses import replace

    from sharding.dataset import open_dataset
    from sharding.existing import metadata_of

    store, manifest = open_dataset(frozen.data.url)
    shards = replace(manifest, shards=manifest.shards_of(split))
    return [line["attributes"].get(DOMINANT) for _, lines in metadata_of(store, shards) for line in lines]


def keys_sha256(keys: Iterable[str]) -> str:
    """SHA-256 of the keys, sorted, each followed by a newline: `LC_ALL=C sort keys.txt | sha256sum`.

    Sorted, so that two data sets which hold the same samples in other shards have one hash.
    """
    return hashlib.sha256("".join(f"{key}\n" for key in sorted(keys)).encode()).hexdigest()


def subset(keys: Sequence[str], share: float, seed: int) -> "npt.NDArray[np.int64]":
    """Places in `keys` of a `share` of them, rising: at least one, drawn without replacement.

    Those whose SHA-256 of `seed/key` is smallest: a function of the set of keys and the seed, not of their order, and
    a smaller share is part of a larger one.
    """
    import numpy as np

    if share >= 1.0:
        return np.arange(len(keys))
    wanted = max(1, int(share * len(keys) + 1e-9))
    ranks = [hashlib.sha256(f"{seed}/{key}".encode()).digest() for key in keys]
    return np.sort(np.array(sorted(range(len(keys)), key=ranks.__getitem__)[:wanted], np.int64))
