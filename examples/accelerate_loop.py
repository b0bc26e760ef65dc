"""Pretrain a tiny Fus-MAE with Accelerate. Started again after a kill, it goes on where it was saved.

python -m examples.accelerate_loop demo/dataset --out run
torchrun --nproc-per-node 2 -m examples.accelerate_loop demo/dataset --out run
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from fusmae import CounterRandom, FusMAE, FusMAEConfig
from pipeline.stream import StreamConfig
from pipeline.stream.torch_dataset import StreamDataset
from pipeline.transform import ImageTransform

SEED = 0
SAVE_EVERY = 5
TINY = {"width": 48, "depth": 2, "heads": 3, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}


def main() -> None:
    """Train on this rank's share of every batch."""
    options = parse()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())  # else it takes CPU processes for separate runs
    set_seed(SEED)
    dataset = StreamDataset(
        StreamConfig(url=options.url, global_batch=options.global_batch, seed=SEED),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    config = FusMAEConfig(image_size=options.image_size, patch_size=options.patch_size, **TINY)
    modalities = [(modality.name, modality.bands) for modality in config.modalities]
    transform = ImageTransform(dataset.stream.manifest, modalities, config.image_size)
    model = FusMAE(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)

    # The data set is not prepared: it gives each rank its own batches, which Accelerate would share out once more,
    # and its state is to be that of the batch in hand, while a prepared loader reads one in advance.
    model, optimiser = accelerator.prepare(model, optimiser)
    accelerator.register_for_checkpointing(dataset)
    if saved := sorted(options.out.glob("step-*")):
        accelerator.load_state(saved[-1])

    for epoch in range(dataset.epoch, options.epochs):
        for batch in dataset:
            # A sample's crop, flips and mask are a function of its place in the order: a resume repeats them.
            batch = batch.to(accelerator.device, non_blocking=True)
            draws = CounterRandom(SEED, batch.epoch, batch.position)
            images, valid = transform(batch, draws)
            loss = model(images, draws, valid).loss
            accelerator.backward(loss)
            optimiser.step()
            optimiser.zero_grad()

            mean_loss = accelerator.reduce(loss.detach(), "mean")
            if accelerator.is_main_process:
                print(f"epoch {epoch} step {batch.step} loss {mean_loss.item():.9g}", flush=True)
            if batch.step % SAVE_EVERY == 0:
                save(accelerator, options.out, batch.step)
    accelerator.end_training()


def save(accelerator: Accelerator, out: Path, step: int) -> None:
    """Write a checkpoint that has its name only once it is whole."""
    accelerator.save_state(out / "unfinished")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (out / "unfinished").rename(out / f"step-{step:08d}")
    accelerator.wait_for_everyone()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pretrain a tiny Fus-MAE with Accelerate.")
    parser.add_argument("url", help="data set made by sharding.build: a folder or s3://...")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints; the last one is resumed")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--global-batch", type=int, default=16, help="samples of a step over all ranks")
    parser.add_argument("--image-size", type=int, default=120)
    parser.add_argument("--patch-size", type=int, default=12)
    return parser.parse_args()


if __name__ == "__main__":
    main()
