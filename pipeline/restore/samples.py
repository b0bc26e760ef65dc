"""The samples of a split that have what a restoration needs.

Shape legend: b samples of a batch.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError
from pipeline.restore.sensors import Sensors

if TYPE_CHECKING:
    from pipeline.frozen import FrozenModel
    from pipeline.restore.settings import CloudSettings, SpeckleSettings


class RestoredSamples:
    """The first samples of a split, in the order of the index, that have both sensors.

    With `all_radar_bands`, a sample needs all bands of Sentinel-1, else any.
    """

    def __init__(
        self,
        frozen: "FrozenModel",
        sensors: Sensors,
        settings: "CloudSettings | SpeckleSettings",
        split: str,
        *,
        all_radar_bands: bool = False,
    ) -> None:
        self._frozen, self._sensors, self._settings, self._split = frozen, sensors, settings, split
        self._all_radar_bands = all_radar_bands
        self.num_samples = 0
        self.left_out = 0
        """Samples that lack a sensor, among those looked at."""

    def batches(self) -> Iterator[tuple[list[str], dict[str, Any], dict[str, Any]]]:
        """Keys, normalised images and valid bands of at most `batch_size` samples; DataError when there is none."""
        limit = self._settings.samples
        for batch, images, valid in self._frozen.batches(self._split, self._settings.batch_size):
            radar_bC, optical_bC = valid[self._sensors.radar], valid[self._sensors.optical]
            has_radar_b = radar_bC.all(1) if self._all_radar_bands else radar_bC.any(1)
            chosen = (has_radar_b & optical_bC.any(1)).nonzero()[:, 0]
            self.left_out += len(batch) - len(chosen)
            if limit:
                chosen = chosen[: limit - self.num_samples]
            if len(chosen):
                self.num_samples += len(chosen)
                keys = [batch.keys[number] for number in chosen.tolist()]
                yield keys, {n: image[chosen] for n, image in images.items()}, {n: v[chosen] for n, v in valid.items()}
            if limit and self.num_samples >= limit:
                break
        if not self.num_samples:
            raise DataError(
                f"no sample of the split '{self._split}' of {self._frozen.data.url} has both sensors; "
                "give another --split"
            )

    def as_dict(self) -> dict[str, Any]:
        """What a result says of them."""
        return {"split": self._split, "samples": self.num_samples, "without_a_sensor": self.left_out}
