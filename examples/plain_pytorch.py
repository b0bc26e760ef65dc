"""Pretrain a tiny Fus-MAE in a plain PyTorch loop. Started again after a kill, it goes on where it was saved.

python -m examples.plain_pytorch demo/dataset --out run.pt
torchrun --nproc-per-node 2 -m examples.plain_pytorch demo/dataset --out run.pt
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

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
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if is_distributed := "RANK" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    # Rank and world size come from the process group; the batches do not depend on how many ranks share them.
    dataset = StreamDataset(StreamConfig(url=options.url, global_batch=options.global_batch, seed=SEED))
    config = FusMAEConfig(image_size=options.image_size, patch_size=options.patch_size, **TINY)
    modalities = [(modality.name, modality.bands) for modality in config.modalities]
    transform = ImageTransform(dataset.stream.manifest, modalities, config.image_size)
    torch.manual_seed(SEED)
    model = FusMAE(config).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if options.out.exists():
        saved = torch.load(options.out, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        dataset.load_state_dict(saved["dataset"])
    trained = nn.parallel.DistributedDataParallel(model) if is_distributed else model

    for epoch in range(dataset.epoch, options.epochs):
        for batch in dataset:
            # A sample's crop, flips and mask are a function of its place in the order: a resume repeats them.
            batch = batch.to(device, non_blocking=True)
            draws = CounterRandom(SEED, batch.epoch, batch.position)
            images, valid = transform(batch, draws)
            loss = trained(images, draws, valid).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()

            mean_loss = loss.detach()
            if is_distributed:
                dist.all_reduce(mean_loss, dist.ReduceOp.SUM)
                mean_loss /= dist.get_world_size()
            if dataset.rank == 0:
                print(f"epoch {epoch} step {batch.step} loss {mean_loss.item():.9g}", flush=True)
                if batch.step % SAVE_EVERY == 0:
                    save(options.out, model=model, optimiser=optimiser, dataset=dataset)
    if is_distributed:
        dist.destroy_process_group()


def save(path: Path, **parts: StreamDataset | nn.Module | torch.optim.Optimizer) -> None:
    """Replace the checkpoint at once, so that a kill leaves either the old or the new one."""
    unfinished = path.with_suffix(".unfinished")
    torch.save({name: part.state_dict() for name, part in parts.items()}, unfinished)
    os.replace(unfinished, path)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pretrain a tiny Fus-MAE in a plain PyTorch loop.")
    parser.add_argument("url", help="data set made by sharding.build: a folder or s3://...")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint file; there already, it is resumed")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--global-batch", type=int, default=16, help="samples of a step over all ranks")
    parser.add_argument("--image-size", type=int, default=120)
    parser.add_argument("--patch-size", type=int, default=12)
    return parser.parse_args()


if __name__ == "__main__":
    main()
