"""A data set through a trained encoder, into one Zarr v3 store.

    zarr.json              the commit: written first with `complete: false`, last with `complete: true` and the metadata
                           of all arrays; its attributes say of what model, data and settings it is
    embedding/c/K/0        rows [K*R, (K+1)*R) of the embeddings: one Zarr shard of many chunks
    key/c/K ...            what is known of the same samples: key, split, place, dates, labels; the same R
    commits/0000000K.json  written last of shard K: sizes and CRC-32C of its files; without it the shard is made again

Rows are the samples of the chosen splits in the manifest's order, each split in the order of its index. A forward pass
never crosses the border of a shard or of a split, so that a shard's bytes depend on model, data and settings alone: not
on the ranks, and not on what was interrupted.
"""
