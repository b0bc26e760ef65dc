import ast
import inspect
from dataclasses import FrozenInstanceError, asdict, fields
from itertools import pairwise

import pytest
from pydantic import TypeAdapter, ValidationError

import fusmae
from fusmae import FusMAEConfig, MaskingConfig, Modality
from fusmae import config as config_module
from fusmae import masking as masking_module


def test_the_default_is_vit_b_on_bigearthnet():
    config = FusMAEConfig()
    assert config == FusMAEConfig.vit_b()
    assert (config.num_patches, config.num_visible) == (225, 56)
    assert [modality.name for modality in config.modalities] == ["s1", "s2"]
    assert config.modalities[0].bands == ("VV", "VH")
    assert " ".join(config.modalities[1].bands) == "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12"


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [("vit_s", (384, 12, 6)), ("vit_b", (768, 12, 12)), ("vit_l", (1024, 24, 16)), ("vit_h", (1280, 32, 16))],
)
def test_presets_set_the_encoder_and_take_changes(preset, sizes):
    config = getattr(FusMAEConfig, preset)(mask_ratio=0.5)
    assert (config.width, config.depth, config.heads) == sizes
    assert config.mask_ratio == 0.5


@pytest.mark.parametrize("sizes", [(120, 8), (128, 16), (224, 16), (120, 12), (120, 15)])
def test_the_usual_image_and_patch_sizes_work(sizes):
    config = FusMAEConfig(image_size=sizes[0], patch_size=sizes[1])
    assert config.num_patches == (sizes[0] // sizes[1]) ** 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"patch_size": 16},
            "image_size 120 .* patches of 16 pixels; write patch_size .*8.* or image_size 112 or 128",
        ),
        ({"image_size": 0}, "image_size 0 must be at least 1"),
        ({"decoder_depth": 0}, "decoder_depth 0 must be at least 1"),
        ({"heads": 7}, "width 768 is no multiple of heads 7"),
        ({"decoder_heads": 3}, "decoder_width 256 is no multiple of decoder_heads 3"),
        ({"width": 192, "heads": 16}, "makes heads 12 wide; .* write width 256"),
        ({"width": 42, "heads": 1}, "width 42 must be a multiple of 4"),
        ({"mlp_ratio": 0.3}, "mlp_ratio 0.3 times width 768 is 230"),
        ({"mlp_ratio": -1.0}, "mlp_ratio -1.0"),
        ({"mask_ratio": 1.0}, "mask_ratio 1.0 must lie between 0 and 1"),
        ({"mask_ratio": 0.999}, "mask_ratio 0.999 leaves 0 of 225 patches visible"),
        ({"depth": 1}, "depth 1 leaves no block"),
        ({"encoder_fusion": "late"}, "encoder_fusion 'late' does not exist; write one of none, xae"),
        ({"masking": "random"}, "masking 'random' does not exist; write one of independent, consistent"),
        ({"target_norm": "per_band"}, "target_norm 'per_band' does not exist"),
        ({"attention_backend": "flash"}, "attention_backend 'flash' does not exist"),
        ({"modalities": ()}, "no modalities"),
        ({"modalities": (Modality(name="s1", bands=("VV",)),)}, "needs two modalities, there is only s1"),
        ({"modalities": (Modality(name="s1", bands=("VV",)),) * 2}, "name stands twice: s1, s1"),
        ({"loss_weights": (1.0,)}, "1 loss_weights do not fit 2 modalities: s1, s2"),
        ({"loss_weights": (1.0, -1.0)}, "not negative"),
        ({"loss_weights": (0.0, 0.0)}, "not all 0"),
        ({"loss_weights": (1.0, float("nan"))}, "finite"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_write(changes, message):
    with pytest.raises(ValueError, match=message):
        FusMAEConfig(**changes)


ONE = {
    "modalities": (Modality(name="s2", bands=("B02", "B03")),),
    "encoder_fusion": "none",
    "decoder_fusion": "none",
}
INDEPENDENT = {"masking": "independent"}
PLAIN = (Modality(name="s1", bands=("VV", "VH")), Modality(name="s2", bands=("B02", "B03")))


@pytest.mark.parametrize(
    ("changes", "message", "advice"),
    [
        (
            {"decoder_fusion": "late"},
            "decoder_fusion 'late' does not exist; write one of none, xad, multimae",
            {"decoder_fusion": "xad"},
        ),
        (
            {"decoder_attention": "both"},
            "decoder_attention 'both' does not exist; write one of self, cross",
            {"decoder_attention": "cross"},
        ),
        (
            {"positions": "rotary"},
            "positions 'rotary' does not exist; write one of sincos, learned",
            {"positions": "learned"},
        ),
        (
            {"masking": "modality", "modality_mask_ratio": 1.5},
            "modality_mask_ratio 1.5 must lie between 0 and 1",
            {"modality_mask_ratio": 1.0},
        ),
        (
            {"masking": "modality", "modality_mask_ratio": -0.1},
            "modality_mask_ratio -0.1 must lie between 0 and 1",
            {"modality_mask_ratio": 0.1},
        ),
        (
            {"modality_mask_ratio": 0.5},
            "modality_mask_ratio 0.5 has no effect under masking 'independent'; write 0.25, or masking: modality",
            {"modality_mask_ratio": 0.25},
        ),
        (
            {"modality_mask_ratio": 0.0, "masking": "union"},
            "modality_mask_ratio 0.0 has no effect under masking 'union'; write 0.25, or masking: modality",
            {"modality_mask_ratio": 0.5, "masking": "modality"},
        ),
        (
            {"modality_mask_ratio": 0.0, "masking": "modality"},
            "modality_mask_ratio 0.0 hides no modality under masking 'modality'; write more, or masking: independent",
            {"modality_mask_ratio": 0.01},
        ),
        (
            {"encoder_fusion": "none", "share_cross_attention": False},
            "share_cross_attention false has no effect under encoder_fusion 'none', .*; write true",
            {"share_cross_attention": True},
        ),
        (
            {"encoder_fusion": "none", "share_cross_attention": False},
            "which has no cross-attention; write true, or encoder_fusion: xae",
            {"encoder_fusion": "xae"},
        ),
        ({"modality_dropout": 2.0}, "modality_dropout 2.0 must lie between 0 and 1", {"modality_dropout": 1.0}),
        ({**ONE, "masking": "modality"}, "masking 'modality' needs two modalities; write independent", INDEPENDENT),
        ({**ONE, "masking": "union"}, "masking 'union' needs two modalities; write independent", INDEPENDENT),
        ({**ONE, "masking": "dirichlet"}, "masking 'dirichlet' needs two modalities; write independent", INDEPENDENT),
        ({**ONE, "masking": "disjoint"}, "masking 'disjoint' needs two modalities; write independent", INDEPENDENT),
        ({**ONE, "masking": "consistent"}, "masking 'consistent' needs two modalities; write independent", INDEPENDENT),
        (
            {**ONE, "modality_dropout": 0.1},
            "modality_dropout 0.1 needs two modalities; write 0",
            {"modality_dropout": 0.0},
        ),
        (
            {"masking": "disjoint", "mask_ratio": 0.25},
            "needs 2 times 169 visible patches, an image has 225; raise mask_ratio to 0.503 or more",
            {"mask_ratio": 0.503},
        ),
        (
            {"masking": "modality", "mask_ratio": 0.25},
            "gives 338 visible patches to 1 modalities of 225; raise mask_ratio to 0.503 or more",
            {"mask_ratio": 0.503},
        ),
        (
            {"masking": "band_group", "modalities": PLAIN},
            "masking 'band_group' needs a modality with two groups of bands; write its groups",
            {"modalities": (PLAIN[0], Modality(name="s2", bands=("B02", "B03"), groups=(("B02",), ("B03",))))},
        ),
        (
            {"target_norm": "per_band_group", "modalities": PLAIN},
            "target_norm 'per_band_group' needs a modality with two groups of bands; write its groups",
            {"target_norm": "per_patch"},
        ),
        (
            {"decoder_attention": "cross", "decoder_fusion": "none", "masking": "union"},
            "decoder_attention 'cross' does not go with masking 'union'; write self",
            {"decoder_attention": "self"},
        ),
        (
            {"decoder_attention": "cross", "decoder_fusion": "none", "modality_dropout": 0.1},
            "decoder_attention 'cross' does not go with modality_dropout; write self",
            {"decoder_attention": "self"},
        ),
        (
            {"decode_global_token": True, "global_token": False},
            "decode_global_token needs global_token: true",
            {"global_token": True},
        ),
        ({"decoder_queries": 0.0}, "decoder_queries 0.0 must lie above 0 and at most at 1", {"decoder_queries": 0.01}),
        ({"decoder_queries": 1.01}, "decoder_queries 1.01 must lie above 0 and at most at 1", {"decoder_queries": 1.0}),
        (
            {"decoder_queries": 0.25, "masking": "union"},
            "decoder_queries 0.25 does not go with masking 'union'; write 1",
            {"decoder_queries": 1.0},
        ),
        (
            {"decoder_queries": 0.25, "masking": "dirichlet"},
            "decoder_queries 0.25 does not go with masking 'dirichlet'; write 1",
            {"decoder_queries": 1.0},
        ),
        (
            {"decoder_queries": 0.25, "masking": "modality"},
            "decoder_queries 0.25 does not go with masking 'modality'; write 1",
            {"decoder_queries": 1.0},
        ),
        (
            {"decoder_queries": 0.25, "modality_dropout": 0.5},
            "decoder_queries 0.25 does not go with modality_dropout; write 1",
            {"decoder_queries": 1.0},
        ),
        (
            {"decoder_fusion": "multimae", "decoder_attention": "cross"},
            "'multimae' has its own cross-attention; write decoder_attention: self",
            {"decoder_attention": "self"},
        ),
        (
            {**ONE, "decoder_fusion": "multimae"},
            "decoder_fusion 'multimae' needs two modalities, there is only s2; write none",
            {"decoder_fusion": "none"},
        ),
        (
            {**ONE, "encoder_fusion": "xae"},
            "encoder_fusion 'xae' needs two modalities, there is only s2; write none",
            {"encoder_fusion": "none"},
        ),
    ],
)
def test_a_combination_that_cannot_work_is_refused_and_what_it_says_to_write_works(changes, message, advice):
    with pytest.raises(ValueError, match=message):
        FusMAEConfig(**changes)
    corrected = FusMAEConfig(**{**changes, **advice})
    assert {key: getattr(corrected, key) for key in advice} == advice


@pytest.mark.parametrize("masking", ["independent", "consistent", "disjoint", "band_group"])
def test_part_of_the_hidden_patches_may_be_predicted_where_their_number_is_fixed(masking):
    config = FusMAEConfig(masking=masking, decoder_queries=0.25)
    assert not config.varies and config.num_predicted == 42  # a quarter of 225 - 56


@pytest.mark.parametrize(
    "changes", [{"masking": m} for m in ("union", "dirichlet", "modality")] + [{"modality_dropout": 0.1}]
)
def test_masks_whose_number_varies_are_told_apart(changes):
    assert FusMAEConfig(**changes).varies
    assert not FusMAEConfig().varies


@pytest.mark.parametrize(
    ("groups", "listed"),
    [
        ((("B02",),), "hold B02; write each of its bands B02, B03, B04 in one group"),
        ((("B02", "B03"), ("B03", "B04")), "hold B02, B03, B03, B04; write"),
        ((("B02", "B03"), ("B04", "B8A")), "hold B02, B03, B04, B8A; write"),
        ((("B02", "B03", "B04"), ()), "hold B02, B03, B04; write"),
    ],
    ids=["a band in none", "a band in two", "a band that is not there", "an empty group"],
)
def test_groups_that_do_not_divide_the_bands_are_refused(groups, listed):
    with pytest.raises(ValueError, match=f"the groups of modality 's2' {listed}"):
        Modality(name="s2", bands=("B02", "B03", "B04"), groups=groups)


def test_groups_are_channels_in_the_order_of_the_bands():
    bands = ("B02", "B03", "B04")
    assert Modality(name="s2", bands=bands, groups=(("B04", "B02"), ("B03",))).group_indices == ((2, 0), (1,))
    assert Modality(name="s2", bands=bands).group_indices == ((0, 1, 2),)


def test_the_default_groups_are_native_resolutions():
    from sharding.bands import ARRAY_BANDS

    s1, s2 = FusMAEConfig().modalities
    stored = {frozenset(ARRAY_BANDS[name]) - {"B10"} for name in ("s2_10m", "s2_20m", "s2_60m")}
    assert {frozenset(group) for group in s2.groups} == stored
    assert s1.groups == (("VV",), ("VH",))


@pytest.mark.parametrize(
    ("modality", "message"),
    [
        ({"name": "S1", "bands": ("VV",)}, "'S1'"),
        ({"name": "", "bands": ("VV",)}, "''"),
        ({"name": "s1", "bands": ()}, "has no bands"),
        ({"name": "s1", "bands": ("VV", "VV")}, "band twice: VV, VV"),
    ],
)
def test_a_modality_that_cannot_work_is_refused(modality, message):
    with pytest.raises(ValueError, match=message):
        Modality(**modality)


def test_heads_of_any_width_do_without_xformers():
    assert FusMAEConfig(width=192, heads=16, attention_backend="sdpa").width == 192


def test_one_modality_works_without_fusion():
    only = (Modality(name="s2", bands=("B02",)),)
    assert FusMAEConfig(modalities=only, encoder_fusion="none", decoder_fusion="none").modality_names == ("s2",)


def test_loss_weights_follow_the_order_of_modalities():
    assert FusMAEConfig().loss_weight("s2") == 1.0
    assert FusMAEConfig(loss_weights=(1.0, 0.25)).loss_weight("s2") == 0.25


def test_settings_are_frozen_and_by_keyword():
    with pytest.raises(FrozenInstanceError):
        FusMAEConfig().width = 1
    with pytest.raises(TypeError):
        FusMAEConfig(120)


def test_plain_data_comes_back_through_pydantic_and_an_unknown_key_does_not():
    adapter = TypeAdapter(FusMAEConfig)
    config = FusMAEConfig(loss_weights=(1.0, 2.0), masking="consistent")
    plain = asdict(config)
    assert adapter.validate_python(plain) == config
    assert adapter.validate_json(adapter.dump_json(config)) == config
    for broken in (
        {**plain, "widht": 8},
        {**plain, "modalities": [{"name": "s1", "bands": ["VV"], "gsd": 10}]},
    ):
        with pytest.raises(ValidationError, match="Unexpected keyword argument"):
            adapter.validate_python(broken)
    with pytest.raises(ValidationError, match="image_size 120 is no whole number"):
        adapter.validate_python({**plain, "patch_size": 7})


@pytest.mark.parametrize("settings", [FusMAEConfig, Modality, MaskingConfig])
def test_every_field_has_its_line_of_documentation(settings):
    module = masking_module if settings is MaskingConfig else config_module
    tree = ast.parse(inspect.getsource(module))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == settings.__name__)
    documented = {
        field.target.id
        for field, line in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
    }
    assert {field.name for field in fields(settings)} <= documented


def test_the_package_hands_out_its_names():
    assert {name for name in fusmae.__all__ if getattr(fusmae, name).__name__ == name} >= set(fusmae.__all__) - {
        "Masks"
    }
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = fusmae.Nothing


@pytest.mark.parametrize("grid", [3, 4, 8, 14, 15])
@pytest.mark.parametrize("masking", ["disjoint", "modality"])
@pytest.mark.parametrize("num", [2, 3, 5, 7])
def test_the_mask_ratio_that_is_advised_is_enough(masking, num, grid):
    modalities = tuple(Modality(name=f"m{i}", bands=("A",)) for i in range(num))
    sizes = {"image_size": 8 * grid, "patch_size": 8, "modalities": modalities, "masking": masking}
    with pytest.raises(ValueError, match="raise mask_ratio to") as refused:
        FusMAEConfig(mask_ratio=0.05 if grid > 4 else 0.1, **sizes)
    advised = float(str(refused.value).split("raise mask_ratio to ")[1].split()[0])
    assert FusMAEConfig(mask_ratio=advised, **sizes).num_visible * num <= grid**2 * (
        num - 1 if masking == "modality" else 1
    )
