"""Floating-point operations of a Fus-MAE: matrix products only, a multiplication and an addition being two.

Counts what `FusMAE.forward` computes with every modality given, as torch's FlopCounterMode does; softmax,
norms, GELU and the loss are left out, as is usual when utilisation is quoted.
"""

from fusmae.config import FusMAEConfig


def forward_flops(config: FusMAEConfig) -> int:
    """Operations of the forward pass of one training sample."""
    num_modalities, visible = len(config.modalities), config.num_visible
    width, hidden = config.width, config.hidden_width(config.width)
    total = sum(_linear(visible, config.patch_elements(modality), width) for modality in config.modalities)
    num_blocks = config.depth
    if config.encoder_fusion == "xae":
        total += num_modalities * _cross_block(visible, (num_modalities - 1) * visible, width, hidden)
        num_blocks -= 1
    total += num_blocks * _block(num_modalities * visible + 1, width, hidden)
    if config.decoder_fusion == "xad":
        total += num_modalities * _cross_block(visible, (num_modalities - 1) * visible, width, hidden)
    return total + sum(_light_decoder(config, config.patch_elements(modality)) for modality in config.modalities)


def _light_decoder(config: FusMAEConfig, num_elements: int) -> int:
    width = config.decoder_width
    blocks = config.decoder_depth * _block(config.num_patches, width, config.hidden_width(width))
    head = _linear(config.num_patches - config.num_visible, width, num_elements)
    return _linear(config.num_visible, config.width, width) + blocks + head


def _block(tokens: int, width: int, hidden: int) -> int:
    maps = _linear(tokens, width, 4 * width) + 2 * _linear(tokens, width, hidden)
    return maps + _attention(tokens, tokens, width)


def _cross_block(queries: int, keys: int, width: int, hidden: int) -> int:
    maps = _linear(queries, width, 2 * width) + _linear(keys, width, 2 * width)
    return maps + _attention(queries, keys, width) + 2 * _linear(queries, width, hidden)


def _attention(queries: int, keys: int, width: int) -> int:
    return 4 * queries * keys * width


def _linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs
