"""Sentinel-1/2 archives to shards: plain WebDataset tars of Zarr groups, an index beside each, a manifest last."""
