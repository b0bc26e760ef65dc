"""Models at two scales that the tests are run with."""

VARIANTS = [
    {},
    {"encoder_fusion": "none", "decoder_fusion": "multimae", "decode_global_token": True},
    {"encoder_fusion": "none", "decoder_fusion": "none", "global_token": False, "masking": "consistent"},
    {"masking": "disjoint", "target_norm": "per_patch", "loss_weights": (1.0, 0.5)},
    {"masking": "band_group", "target_norm": "per_band_group", "decode_global_token": True},
    {"positions": "learned", "share_cross_attention": False},
]
