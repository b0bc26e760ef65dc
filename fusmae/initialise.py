"""The initial weights: a function of torch's seed and of the order in which the modules were made."""

from torch import nn

from fusmae.attention import CrossAttention, SelfAttention
from fusmae.decoder import LightDecoder
from fusmae.encoder import Encoder
from fusmae.patch import LearnedPositions


def initialise(module: nn.Module) -> None:
    """Give one module its initial weights; for `nn.Module.apply`.

    Matrices are Xavier-uniform (maps to q, k and v as the separate matrices that they are), biases 0, norms 1
    and 0, learned tokens normal with deviation 0.02, cut at two units.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, SelfAttention | CrossAttention):
        joined = module.qkv if isinstance(module, SelfAttention) else module.kv
        for matrix in joined.weight.detach().split(joined.in_features):
            nn.init.xavier_uniform_(matrix)
    elif isinstance(module, LearnedPositions):
        nn.init.trunc_normal_(module.table_ND, std=0.02)
    elif isinstance(module, Encoder):
        if module.global_token_D is not None:
            nn.init.trunc_normal_(module.global_token_D, std=0.02)
    elif isinstance(module, LightDecoder):
        nn.init.trunc_normal_(module.mask_token_W, std=0.02)
        nn.init.trunc_normal_(module.modality_embedding_W, std=0.02)
        if module.source_embedding_SW is not None:
            nn.init.trunc_normal_(module.source_embedding_SW, std=0.02)
