"""Floating-point operations of a Fus-MAE: matrix products only, a multiplication and an addition being two.

Counts what `FusMAE.forward` computes with every modality given, as torch's FlopCounterMode does; softmax,
norms, GELU and the loss are left out, as is usual when utilisation is quoted. Where the number of visible patches
varies, it is taken to be the same in all modalities, which is its mean.
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
    total += num_blocks * _block(num_modalities * visible + config.global_token, width, hidden)
    rest = int(config.decode_global_token)
    if config.decoder_fusion == "xad":
        total += num_modalities * _cross_block(visible, (num_modalities - 1) * visible + rest, width, hidden)
    return total + sum(_light_decoder(config, config.patch_elements(modality)) for modality in config.modalities)


def _light_decoder(config: FusMAEConfig, num_elements: int) -> int:
    width, visible, rest = config.decoder_width, config.num_visible, int(config.decode_global_token)
    hidden = config.hidden_width(width)
    predicted = config.num_patches - visible if config.varies else config.num_predicted
    scored = config.num_patches if config.varies else predicted
    context, joined, total = visible + rest, visible + predicted + rest, 0
    if config.decoder_fusion == "multimae":
        context, joined = len(config.modalities) * visible + rest, visible + predicted
        total = _cross_block(joined, context, width, hidden)
    if config.decoder_attention == "cross":
        total += config.decoder_depth * _cross_block(predicted, context, width, hidden)
    else:
        total += config.decoder_depth * _block(joined, width, hidden)
    return _linear(context, config.width, width) + total + _linear(scored, width, num_elements)


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
