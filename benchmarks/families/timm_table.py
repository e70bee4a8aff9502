"""Families of timm with random weights: its smallest networks, made smaller where they allow it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import timm

from families import Case, features, plenty
from families.narrowing import CLASSES, narrowed

Settings = dict[str, Any]

VIT: Settings = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 4}
FOUR: Settings = {"depths": (1, 1, 1, 1)}
DIMS: Settings = {**FOUR, "dims": (8, 16, 16, 32)}
EMBED: Settings = {**FOUR, "embed_dims": (8, 16, 16, 32)}
HEADS: Settings = {**EMBED, "num_heads": (1, 2, 2, 4)}
LEVELS: Settings = {**FOUR, "embed_dim": 8, "num_heads": (1, 2, 2, 4)}


def network(name: str, size: int, factor: int, settings: Settings) -> Case:
    """A network by its name, with widths divided by a factor."""
    with narrowed(factor):
        model = timm.create_model(name, num_classes=CLASSES, **settings)
    return Case(model, features(3, size, size), plenty(size))


NETWORKS: dict[str, tuple[int, int, Settings]] = {
    "beit_base_patch16_224": (16, 1, VIT),
    "beitv2_base_patch16_224": (16, 1, VIT),
    "eca_botnext26ts_256": (64, 1, {"img_size": 64}),
    "test_byobnet": (64, 1, {}),
    "repvgg_a0": (32, 16, {}),
    "gernet_s": (32, 8, {}),
    "mobileone_s0": (32, 8, {}),
    "resnet51q": (32, 16, {}),
    "cait_s24_224": (16, 1, VIT),
    "convit_tiny": (16, 1, {**VIT, "local_up_to_layer": 1}),
    "test_convnext": (32, 1, {}),
    "test_convnext2": (32, 1, {}),
    "cpubone_nano": (64, 1, {}),
    "darknet53": (32, 16, {}),
    "cspnext_tiny": (32, 1, {"depths": (1, 1, 1, 1), "widen_factor": 0.0625}),
    "davit_tiny": (32, 1, {**HEADS, "window_size": 4}),
    "deepseek_vit_412m": (56, 1, {"img_size": 56, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "deit_tiny_distilled_patch16_224": (16, 1, VIT),
    "deit3_small_patch16_224": (16, 1, VIT),
    "dla34": (32, 8, {}),
    "dla46x_c": (32, 1, {}),
    "dpn68": (32, 1, {"k_sec": (1, 1, 1, 1), "k_r": 32, "groups": 8}),
    "edgenext_x_small": (64, 1, {**DIMS, "heads": (2, 2, 2, 4)}),
    "efficientformerv2_s0": (64, 1, {**EMBED, "img_size": 64}),
    "test_efficientnet": (32, 1, {}),
    "efficientnet_lite0": (32, 8, {}),
    "mixnet_s": (32, 1, {}),
    "mnasnet_small": (32, 1, {}),
    "mobilenetv2_035": (32, 2, {}),
    "tinynet_e": (32, 2, {}),
    "efficientvim_m1": (64, 1, {"embed_dim": (16, 16, 32), "depths": (1, 1, 1)}),
    "efficientvit_b0": (32, 1, {}),
    "efficientvit_m0": (64, 1, {"img_size": 64, "embed_dim": (16, 32, 48), "key_dim": (4, 4, 4)}),
    "eva02_tiny_patch14_224": (16, 1, VIT),
    "vit_small_patch16_rope_224": (16, 1, VIT),
    "vit_pe_core_tiny_patch16_384": (16, 1, VIT),
    "fasternet_s": (32, 1, {**FOUR, "embed_dim": 8, "feature_dim": 32}),
    "fastvit_s12": (64, 1, {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 32)}),
    "gemma4_vit_167m_enc": (48, 1, {"img_size": 48, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "ghostnet_050": (32, 1, {}),
    "hardcorenas_b": (32, 4, {}),
    "hgnetv2_b0": (32, 8, {}),
    "hiera_tiny_224": (64, 1, {"img_size": (64, 64), "embed_dim": 8, "stages": (1, 1, 1, 1)}),
    "sam2_hiera_tiny": (64, 1, {"embed_dim": 8, "stages": (1, 1, 1, 1)}),
    "inception_next_atto": (32, 1, {**FOUR, "dims": (16, 16, 32, 32)}),
    "inception_resnet_v2": (96, 8, {}),
    "inception_v3": (96, 8, {}),
    "inception_v4": (96, 8, {}),
    "lcnetv2_small": (32, 1, {"scale": 0.25, "depths": (1, 1, 1, 1), "head_hidden_size": 32}),
    "test_mambaout": (32, 1, {}),
    "test_maxvit": (64, 1, {"img_size": 64}),
    "mobilenetv3_small_050": (32, 1, {}),
    "lcnet_035": (32, 1, {}),
    "fbnetv3_b": (32, 4, {}),
    "mobilenetv4_conv_small_035": (32, 1, {}),
    "mobilevit_xxs": (64, 1, {}),
    "mobilevitv2_050": (64, 1, {}),
    "naflexvit_base_patch16_siglip": (
        16,
        1,
        {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 4},
    ),
    "pnasnet5large": (64, 6, {}),
    "test_nfnet": (32, 1, {}),
    "pit_ti_224": (
        32,
        1,
        {
            "img_size": 32,
            "patch_size": 8,
            "stride": 4,
            "base_dims": (8, 8, 8),
            "depth": (1, 1, 1),
            "heads": (1, 2, 4),
        },
    ),
    "pvt_v2_b0": (32, 1, HEADS),
    "qwen3_vit_88m": (64, 1, {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "regnetx_002": (32, 1, {}),
    "repghostnet_050": (32, 1, {}),
    "repvit_m1": (32, 1, {"embed_dim": (8, 16, 16, 32), "depth": (1, 1, 1, 1)}),
    "res2net50_26w_4s": (32, 1, {"layers": [1, 1, 1, 1], "channels": (8, 16, 16, 32)}),
    "resnest14d": (32, 1, {"channels": (8, 16, 16, 32), "stem_width": 8}),
    "test_resnet": (32, 1, {}),
    "ecaresnet26t": (32, 8, {}),
    "resnetv2_50": (32, 1, {"layers": [1, 1, 1, 1], "channels": (32, 32, 64, 64), "stem_chs": 16}),
    "rexnet_100": (32, 1, {"width_mult": 0.25}),
    "selecsls42": (32, 8, {}),
    "legacy_seresnet18": (32, 8, {}),
    "sequencer2d_s": (
        28,
        1,
        {
            "img_size": 28,
            "layers": (1, 1, 1, 1),
            "embed_dims": (16, 16, 16, 16),
            "hidden_sizes": (4, 4, 4, 4),
        },
    ),
    "shvit_s1": (
        64,
        1,
        {"embed_dim": (16, 32, 48), "partial_dim": (4, 8, 12), "qk_dim": (4, 4, 4)},
    ),
    "starnet_s1": (32, 1, {"base_dim": 4, "depths": [1, 1, 1, 1]}),
    "swiftformer_s": (64, 1, {"layers": [1, 1, 1, 1], "embed_dims": [8, 16, 16, 32]}),
    "swin_tiny_patch4_window7_224": (32, 1, {**LEVELS, "img_size": 32, "window_size": 4}),
    "swinv2_tiny_window8_256": (32, 1, {**LEVELS, "img_size": 32, "window_size": 4}),
    "swinv2_cr_tiny_224": (32, 1, {**LEVELS, "img_size": (32, 32), "window_size": (4, 4)}),
    "tiny_vit_5m_224": (64, 1, HEADS),
    "tnt_s_legacy_patch16_224": (
        16,
        1,
        {
            "img_size": 16,
            "patch_size": 4,
            "embed_dim": 16,
            "inner_dim": 8,
            "depth": 2,
            "num_heads_inner": 2,
            "num_heads_outer": 4,
        },
    ),
    "twins_pcpvt_small": (32, 1, {**HEADS, "img_size": 32}),
    "twins_svt_small": (64, 1, {**HEADS, "img_size": 64}),
    "vgg11": (32, 16, {}),
    "visformer_tiny": (32, 1, {"img_size": 32, "embed_dim": 48, "init_channels": 8, "depth": 3}),
    "test_vit": (32, 1, {"img_size": 32, "patch_size": 8}),
    "vit_little_patch16_reg4_gap_256": (16, 1, VIT),
    "test_vit_relpos": (32, 1, {"img_size": 32, "patch_size": 8}),
    "samvit_base_patch16": (16, 1, VIT),
    "ese_vovnet19b_slim_dw": (32, 4, {}),
    "legacy_xception": (64, 8, {}),
    "xception41": (64, 8, {}),
    "xcit_nano_12_p8_224": (32, 1, {**VIT, "img_size": 32, "patch_size": 8}),
    "coat_tiny": (
        64,
        1,
        {
            "img_size": 64,
            "embed_dims": (16, 16, 16, 16),
            "serial_depths": (1, 1, 1, 1),
            "parallel_depth": 1,
        },
    ),
    "crossvit_tiny_240": (
        60,
        1,
        {"img_size": 60, "patch_size": (12, 14), "embed_dim": (16, 32), "num_heads": (2, 4)},
    ),
    "csatv2": (
        64,
        1,
        {"dims": (8, 16, 16, 32), "depths": (1, 1, 2, 2), "transformer_depths": (0, 0, 1, 1)},
    ),
    "cs3darknet_focus_s": (32, 1, {}),
    "densenet121": (32, 1, {"growth_rate": 4, "block_config": (2, 2, 2, 2)}),
    "efficientformer_l1": (224, 1, {**EMBED, "num_vit": 1}),
    "iformer_s": (
        64,
        1,
        {"dims": (8, 16, 16, 32), "depths": (1, 1, 3, 3), "attn_groups": (0, 0, 1, 1)},
    ),
    "levit_128s": (64, 1, {"img_size": 64}),
    "test_coatnet": (64, 1, {"img_size": 64}),
    "rdnet_tiny": (
        32,
        1,
        {"growth_rates": (8,) * 7, "num_blocks_list": (1,) * 7, "num_init_features": 16},
    ),
    "regnetz_005": (32, 4, {}),
    "hrnet_w18_small": (32, 4, {}),
    "skresnet18": (32, 1, {"channels": (8, 16, 16, 32)}),
    "tresnet_m": (64, 1, {"width_factor": 0.125}),
    "vit_tiny_r_s16_p8_224": (32, 1, {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 4}),
    "mobilenetv1_100": (32, 8, {}),
}
"""By name the size of images, what widths are divided by, and settings."""

SMALL: Settings = {"img_size": 16, "patch_size": 4, "num_blocks": 2, "embed_dim": 16}
ONE_RATIO: Settings = {**SMALL, "mlp_ratio": 2}

CLASSES_OF: dict[str, tuple[str, int, Callable[[Any], Settings]]] = {
    "convmixer": ("ConvMixer", 28, lambda _: {"dim": 16, "depth": 2}),
    "focalnet": ("FocalNet", 32, lambda _: {**FOUR, "embed_dim": 8}),
    "gcvit": ("GlobalContextVit", 64, lambda _: {**LEVELS, "img_size": 64}),
    "metaformer": ("MetaFormer", 32, lambda _: DIMS),
    "metaformer, convolutions": (
        "MetaFormer",
        32,
        lambda m: {**DIMS, "token_mixers": m.SepConv},
    ),
    "mlp_mixer": ("MlpMixer", 16, lambda _: SMALL),
    "mlp_mixer, gmlp": (
        "MlpMixer",
        16,
        lambda m: {**ONE_RATIO, "block_layer": m.SpatialGatingBlock, "mlp_layer": m.GatedMlp},
    ),
    "mlp_mixer, resmlp": (
        "MlpMixer",
        16,
        lambda m: {**ONE_RATIO, "block_layer": m.ResBlock, "norm_layer": m.Affine},
    ),
    "nest": (
        "Nest",
        32,
        lambda _: {
            "img_size": 32,
            "patch_size": 2,
            "embed_dims": (8, 16, 32),
            "num_heads": (1, 2, 4),
            "depths": (1, 1, 1),
        },
    ),
    "volo": (
        "VOLO",
        32,
        lambda _: {
            "img_size": 32,
            "layers": (1, 1, 1, 1),
            "stem_hidden_dim": 16,
            "embed_dims": (16, 32, 32, 32),
            "num_heads": (2, 4, 4, 4),
        },
    ),
    "mvitv2": (
        "MultiScaleVit",
        64,
        lambda m: {
            "cfg": m.MultiScaleVitCfg(depths=(1, 1, 1, 1), embed_dim=8, num_heads=1),
            "img_size": (64, 64),
        },
    ),
}
"""Networks whose sizes only their classes take: by module the class, the size of images, and
settings, which may need the module."""


def network_of_class(module: str, cls: str, size: int, settings: Callable[[Any], Settings]) -> Case:
    found = importlib.import_module(f"timm.models.{module}")
    model = getattr(found, cls)(num_classes=CLASSES, **settings(found))
    return Case(model, features(3, size, size), plenty(size))


TABLE: dict[str, Callable[[], Case]] = {
    **{name: functools.partial(network, name, *given) for name, given in NETWORKS.items()},
    **{
        name: functools.partial(network_of_class, name.split(",")[0], *given)
        for name, given in CLASSES_OF.items()
    },
}
