"""From a checkpoint to a folder that others can use without this project: `python -m pipeline.export`.

Three of its modules are copied into that folder as they are: `fusmae_inference`, `fusmae_terratorch` and
`fusmae_torchgeo`. They import nothing of ours.
"""
