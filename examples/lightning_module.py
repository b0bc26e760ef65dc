"""Pretrain a tiny Fus-MAE with Lightning. Started again after a kill, it goes on where it was saved, in mid-epoch too.

python -m examples.lightning_module demo/dataset --out run
python -m examples.lightning_module demo/dataset --out run --devices 2
"""

import argparse
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from fusmae import CounterRandom, FusMAE, FusMAEConfig
from pipeline.stream import Batch, StreamConfig
from pipeline.stream.torch_dataset import StreamDataset
from pipeline.transform import ImageTransform
from sharding.manifest import Manifest

SEED = 0
SAVE_EVERY = 5
TINY = {"width": 48, "depth": 2, "heads": 3, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}


class Pretraining(pl.LightningModule):
    """A Fus-MAE that learns from the batches of a `StreamDataset`."""

    def __init__(self, config: FusMAEConfig, manifest: Manifest) -> None:
        super().__init__()
        self.model = FusMAE(config)
        self.transform = ImageTransform(manifest, [(m.name, m.bands) for m in config.modalities], config.image_size)

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """The loss of a batch, which Lightning has moved to the device."""
        # A sample's crop, flips and mask are a function of its place in the order: a resume repeats them.
        draws = CounterRandom(SEED, batch.epoch, batch.position)
        images, valid = self.transform(batch, draws)
        loss: Tensor = self.model(images, draws, valid).loss
        mean_loss = self.all_gather(loss.detach()).mean()
        self.log("loss", mean_loss, batch_size=len(batch), rank_zero_only=True)
        if self.global_rank == 0:
            print(f"epoch {self.current_epoch} step {batch.step} loss {mean_loss.item():.9g}", flush=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW at a constant rate."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    """Train, from the last checkpoint if there is one."""
    options = parse()
    pl.seed_everything(SEED, verbose=False)
    dataset = StreamDataset(StreamConfig(url=options.url, global_batch=options.global_batch, seed=SEED))
    config = FusMAEConfig(image_size=options.image_size, patch_size=options.patch_size, **TINY)
    trainer = pl.Trainer(
        accelerator="auto",
        devices=options.devices,
        max_epochs=options.epochs,
        callbacks=[ModelCheckpoint(options.out, save_last=True, every_n_train_steps=SAVE_EVERY)],
        logger=False,
        enable_progress_bar=False,
    )
    last = options.out / "last.ckpt"
    # The data set is the loader. Lightning keeps its state in the checkpoint, and asks it for the rank's own batches.
    trainer.fit(
        Pretraining(config, dataset.stream.manifest),
        train_dataloaders=dataset,
        ckpt_path=last if last.exists() else None,
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pretrain a tiny Fus-MAE with Lightning.")
    parser.add_argument("url", help="data set made by sharding.build: a folder or s3://...")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints; the last one is resumed")
    parser.add_argument("--devices", type=int, default=1, help="processes, each with a device of its own")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--global-batch", type=int, default=16, help="samples of a step over all ranks")
    parser.add_argument("--image-size", type=int, default=120)
    parser.add_argument("--patch-size", type=int, default=12)
    return parser.parse_args()


if __name__ == "__main__":
    main()
