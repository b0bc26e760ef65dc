"""One rank of the loop that DeepSpeed's documentation shows: its own loader, `save_checkpoint` and `load_checkpoint`.

    python -m tests.dist.deepspeed_own CONFIG run.dir=... train.steps=...

The model, the optimiser and the samples are those of `pipeline.pretrain`; masks come from torch's generator, as in most
masked autoencoders. Writes the loss of each step to `losses.jsonl`, the last time a step was done counts.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fusmae import FusMAE
from fusmae.random import CounterRandom
from pipeline.config import load_settings, model_config
from pipeline.distributed import join
from pipeline.engine import import_deepspeed
from pipeline.launch import follow_launcher
from pipeline.optimiser import build_adamw
from pipeline.stream.exact import evaluation_batches, read_image_manifest
from pipeline.transform import ImageTransform


def samples(settings: Any, config: Any) -> list[dict[str, torch.Tensor]]:
    """All images of the split, normalised."""
    bands = [(modality.name, modality.bands) for modality in config.modalities]
    transform = ImageTransform(
        read_image_manifest(settings.data.url), bands, config.image_size, flips=False, upsample=settings.data.upsample
    )
    found = []
    with evaluation_batches(settings.data.url, "train", 1, threads=1) as reader:
        for batch in reader:
            images, _ = transform(batch, None)
            found.append({name: image[0].clone() for name, image in images.items()})
    return found


def main(arguments: list[str]) -> None:
    """Resume where DeepSpeed says, and train to the end."""
    follow_launcher()
    settings = load_settings(arguments[0], arguments[1:])
    config = model_config(settings)
    torch.set_num_threads(1)
    torch.manual_seed(settings.train.seed)
    device = torch.device("cpu")
    join(device, 20)
    deepspeed = import_deepspeed(device)
    model = FusMAE(config)
    world_size = dist.get_world_size()
    with contextlib.redirect_stdout(io.StringIO()):
        engine, _, loader, _ = deepspeed.initialize(
            model=model,
            model_parameters=model.parameters(),
            optimizer=build_adamw(model, settings.optim, device),
            training_data=samples(settings, config),
            config={
                "train_micro_batch_size_per_gpu": settings.train.global_batch // world_size,
                "gradient_accumulation_steps": 1,
                "bf16": {"enabled": True},
                "zero_optimization": {"stage": 1},
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": 10**9,
            },
        )
    run_dir = Path(settings.run.dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    _, client_state = engine.load_checkpoint(str(run_dir / "checkpoints"))
    step = (client_state or {}).get("step", 0)
    if dist.get_rank() == 0:
        print(f"begins at step {step}", flush=True)
    batches = iter(deepspeed.runtime.dataloader.RepeatingLoader(loader))
    while step < settings.train.steps:
        images = next(batches)
        size = len(next(iter(images.values())))
        draws = CounterRandom(
            int(torch.randint(2**31, ())), torch.zeros(size, dtype=torch.int64), torch.arange(size, dtype=torch.int64)
        )
        output = engine(images, draws, None)
        engine.backward(output.loss)
        engine.step()
        step += 1
        if dist.get_rank() == 0:
            with (run_dir / "losses.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "loss": float(output.loss).hex()}) + "\n")
        if step % settings.checkpoint.every == 0:
            engine.save_checkpoint(str(run_dir / "checkpoints"), client_state={"step": step})


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)
