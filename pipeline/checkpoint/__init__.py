"""A checkpoint is a folder that appears whole or not at all.

    attempt.json                the attempt that may publish, the one that began last
    checkpoints/.tmp-00000040-* being written: nobody reads it
    checkpoints/step-00000040   committed: the rename is the commit
        manifest.json           step, world size, engine, and size and CRC-32C of every other file
        state.json              position in the data, the same on every rank
        rank00000.pt ...        each rank's random number generators
        engine/ ...             weights in training precision, fp32 masters and moments, as the engine shards them
        model.safetensors       fp32 weights for everything that comes after training
        PINNED                  never deleted (python -m pipeline.checkpoint pin)

DeepSpeed's own `latest` file may point at a half-written folder (it is written before a barrier) and a flipped bit
loads silently; so every file is synced to disk, checksummed, and verified before it is loaded.
"""

from pipeline.checkpoint.fence import Fence
from pipeline.checkpoint.files import (
    MANIFEST_NAME,
    STATE_NAME,
    WEIGHTS_NAME,
    committed,
    defect,
    read_manifest,
)
from pipeline.checkpoint.loading import Found, find, load
from pipeline.checkpoint.opening import Checkpoints, open_checkpoints, open_shelf
from pipeline.checkpoint.place import FolderPlace, Place
from pipeline.checkpoint.retention import Retention, retain
from pipeline.checkpoint.saving import Saved, Saver
from pipeline.checkpoint.shelf import FolderShelf, Shelf

__all__ = [
    "MANIFEST_NAME",
    "STATE_NAME",
    "WEIGHTS_NAME",
    "Checkpoints",
    "Fence",
    "FolderPlace",
    "FolderShelf",
    "Found",
    "Place",
    "Retention",
    "Saved",
    "Saver",
    "Shelf",
    "committed",
    "defect",
    "find",
    "load",
    "open_checkpoints",
    "open_shelf",
    "read_manifest",
    "retain",
]
