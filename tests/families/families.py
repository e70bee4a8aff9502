"""Families of architectures that people have, tiny and with random weights, and what they owe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ccamerge.graph.tracing.exporting import results_of
from tests import models as M

SAMPLES, TOKENS, VOCABULARY = 32, 8, 40
WIDTH, HEADS, LAYERS, HIDDEN = 16, 4, 2, 24

Built = tuple[nn.Module, Any]
"""A model, and a batch for it of `SAMPLES` samples."""


@dataclasses.dataclass(frozen=True)
class Family:
    """How to build one, the package that it needs, and what is aligned in it.

    ``every`` and ``some`` are the least shares of parameters that are aligned along all their axes,
    and along some or all, in percent.
    """

    build: Callable[[], Built]
    package: str = ""
    every: int = 0
    some: int = 0


FAMILIES: dict[str, Family] = {}


def family(name: str, package: str = "", *, every: int = 0, some: int = 0) -> Any:
    """Enter what a function builds into the table."""

    def enter(build: Callable[[], Built]) -> Callable[[], Built]:
        FAMILIES[name] = Family(build, package, every, some)
        return build

    return enter


def built(name: str, seed: int = 0) -> Built:
    """A family's model in double precision, every parameter random, and a batch."""
    torch.manual_seed(seed)
    model, batch = FAMILIES[name].build()
    return M.randomise(model, seed).double(), batch


def flattened(outputs: Any) -> Tensor:
    """All numbers in the outputs of a model, one after the other."""
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return torch.cat([x.flatten() for x in leaves if isinstance(x, Tensor)])


def called(model: nn.Module, batch: Any) -> Tensor:
    """What a model gives for a batch; hidden states beside logits are no results."""
    with torch.inference_mode():
        found = model(**batch) if isinstance(batch, dict) else model(batch)
        return flattened(results_of(found))


def ids(tokens: int = TOKENS) -> Tensor:
    """Token identifiers; none of the first four, which are special in some families."""
    return torch.randint(4, VOCABULARY, (SAMPLES, tokens))


def images(size: int, samples: int = SAMPLES) -> Tensor:
    return torch.randn(samples, 3, size, size, dtype=torch.float64)


def _causal(kind: str, config: str, **settings: Any) -> Built:
    """A language model by the names of its classes."""
    import transformers

    usual: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 16,
        "use_cache": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    configuration = getattr(transformers, config)(**{**usual, **settings})
    return getattr(transformers, kind)(configuration), {"input_ids": ids()}


def _grouped(name: str, **settings: Any) -> Built:
    """Llama and its relatives: two query heads for each of two heads of keys and values."""
    settings = {"num_key_value_heads": 2, **settings}
    return _causal(f"{name}ForCausalLM", f"{name}Config", **settings)


@family("Llama", "transformers", every=75, some=100)
def _llama() -> Built:
    return _grouped("Llama")


@family("Mistral", "transformers", every=75, some=100)
def _mistral() -> Built:
    return _grouped("Mistral", sliding_window=6)


@family("Mixtral", "transformers", every=10, some=100)
def _mixtral() -> Built:
    model, batch = _grouped("Mixtral", num_local_experts=3, num_experts_per_tok=2)
    model.config._experts_implementation = "eager"  # others run in single precision only
    return model, batch


@family("Qwen2", "transformers", every=75, some=100)
def _qwen2() -> Built:
    return _grouped("Qwen2")


@family("Qwen3", "transformers", every=75, some=100)
def _qwen3() -> Built:
    return _grouped("Qwen3", head_dim=4)


@family("Gemma", "transformers", every=86, some=100)
def _gemma() -> Built:
    return _grouped("Gemma", head_dim=4)


@family("Phi", "transformers", every=74, some=99)
def _phi() -> Built:
    return _causal("PhiForCausalLM", "PhiConfig")


@family("GPT-2", "transformers", every=81, some=100)
def _gpt2() -> Built:
    settings = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": HIDDEN}
    return _causal("GPT2LMHeadModel", "GPT2Config", n_positions=16, **settings)


@family("GPT-NeoX", "transformers", every=75, some=100)
def _gpt_neox() -> Built:
    return _causal("GPTNeoXForCausalLM", "GPTNeoXConfig")


@family("OPT", "transformers", every=80, some=100)
def _opt() -> Built:
    settings = {"ffn_dim": HIDDEN, "word_embed_proj_dim": WIDTH}
    return _causal("OPTForCausalLM", "OPTConfig", **settings)


def _encoder(kind: str, config: str, **settings: Any) -> Built:
    """An encoder of padded text."""
    model, batch = _causal(kind, config, max_position_embeddings=16, **settings)
    lengths = torch.arange(SAMPLES) % 4 + TOKENS - 3
    mask = (torch.arange(TOKENS) < lengths[:, None]).long()
    return model, {**batch, "attention_mask": mask}


@family("BERT", "transformers", every=81, some=100)
def _bert() -> Built:
    return _encoder("BertForSequenceClassification", "BertConfig")


@family("RoBERTa", "transformers", every=81, some=99)
def _roberta() -> Built:
    return _encoder("RobertaForMaskedLM", "RobertaConfig")


@family("DistilBERT", "transformers", every=82, some=100)
def _distilbert() -> Built:
    settings = {"dim": WIDTH, "hidden_dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS}
    return _encoder("DistilBertForSequenceClassification", "DistilBertConfig", **settings)


@family("ALBERT", "transformers", every=82, some=99)
def _albert() -> Built:
    return _encoder("AlbertForMaskedLM", "AlbertConfig", embedding_size=8)


@family("ELECTRA", "transformers", every=90, some=100)
def _electra() -> Built:
    return _encoder("ElectraForSequenceClassification", "ElectraConfig", embedding_size=8)


def _translator(kind: str, config: str, **settings: Any) -> Built:
    """An encoder and a decoder."""
    model, batch = _encoder(kind, config, decoder_start_token_id=1, **settings)
    return model, {**batch, "decoder_input_ids": ids(6)}


@family("T5", "transformers", every=93, some=100)
def _t5() -> Built:
    settings = {"d_model": WIDTH, "d_kv": 4, "d_ff": HIDDEN, "num_heads": HEADS}
    return _translator(
        "T5ForConditionalGeneration",
        "T5Config",
        num_layers=LAYERS,
        relative_attention_num_buckets=6,
        relative_attention_max_distance=8,
        **settings,
    )


@family("BART", "transformers", every=89, some=100)
def _bart() -> Built:
    sides = {"layers": LAYERS, "attention_heads": HEADS, "ffn_dim": HIDDEN}
    both = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in sides.items()}
    return _translator("BartForConditionalGeneration", "BartConfig", d_model=WIDTH, **both)


def _vision(kind: str, config: str, size: int = 16, **settings: Any) -> Built:
    """A classifier of images."""
    import transformers

    usual: dict[str, Any] = {
        "image_size": size,
        "patch_size": 4,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_labels": 5,
    }
    configuration = getattr(transformers, config)(**{**usual, **settings})
    return getattr(transformers, kind)(configuration), {"pixel_values": images(size)}


@family("ViT", "transformers", every=77, some=100)
def _vit() -> Built:
    return _vision("ViTForImageClassification", "ViTConfig")


@family("DeiT", "transformers", every=76, some=100)
def _deit() -> Built:
    return _vision("DeiTForImageClassificationWithTeacher", "DeiTConfig")


@family("Swin", "transformers", every=95, some=100)
def _swin() -> Built:
    stages = {"depths": [2, 2], "num_heads": [2, 4], "embed_dim": 8, "window_size": 2}
    settings = {"patch_size": 2, "mlp_ratio": 2.0, **stages}
    import transformers

    configuration = transformers.SwinConfig(image_size=16, num_labels=5, **settings)
    return transformers.SwinForImageClassification(configuration), {"pixel_values": images(16)}


@family("CLIP", "transformers", every=78, some=100)
def _clip() -> Built:
    import transformers

    usual: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    special = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 16, **special, **usual}
    vision = {"image_size": 16, "patch_size": 4, **usual}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    )
    tokens = ids()
    tokens[:, -1] = 3  # the end of the text, where it is read
    mask = torch.ones_like(tokens)
    return model, {"input_ids": tokens, "pixel_values": images(16), "attention_mask": mask}


@family("Whisper's encoder", "transformers", every=3, some=95)
def _whisper() -> Built:
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    configuration = transformers.WhisperConfig(
        d_model=WIDTH,
        encoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=HIDDEN,
        num_mel_bins=6,
        max_source_positions=8,
    )
    sounds = torch.randn(SAMPLES, 6, 16, dtype=torch.float64)
    return WhisperEncoder(configuration), {"input_features": sounds}


class Encoder(nn.Module):
    """torch's own encoder between two linear layers."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, HIDDEN, batch_first=True, norm_first=norm_first
        )
        self.embed = nn.Linear(6, WIDTH)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(self.encoder(self.embed(x))))
        return found


class Attentive(nn.Module):
    """torch's own attention beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        found: Tensor = self.head(x + self.attention(y, y, y, need_weights=False)[0])
        return found


def _vectors() -> Tensor:
    return torch.randn(SAMPLES, TOKENS, 6, dtype=torch.float64)


@family("nn.TransformerEncoder", every=96, some=100)
def _post_norm() -> Built:
    return Encoder(norm_first=False), _vectors()


@family("nn.TransformerEncoder, norm first", every=95, some=100)
def _pre_norm() -> Built:
    return Encoder(norm_first=True), _vectors()


@family("nn.MultiheadAttention", every=86, some=100)
def _multihead() -> Built:
    return Attentive(), _vectors()


@family("ConvNeXt", "timm", every=95, some=100)
def _convnext() -> Built:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=(1,) * 4, dims=(8, 8, 16, 16), num_classes=5), images(32)


@family("MaxViT", "timm", every=97, some=100)
def _maxvit() -> Built:
    small = {"embed_dim": (8, 16), "depths": (1, 1), "block_type": ("M", "M"), "stem_width": 8}
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg

    attention = MaxxVitTransformerCfg(dim_head=4, window_size=(2, 2), grid_size=(2, 2))
    configuration = MaxxVitCfg(**small, transformer_cfg=attention)
    return MaxxVit(configuration, img_size=16, num_classes=5), images(16)


@family("EfficientNet", "timm", every=90, some=100)
def _efficientnet() -> Built:
    return _inverted("EfficientNet", [["ds_r1_k3_s1_e1_c8_se0.25"], ["ir_r2_k3_s2_e2_c16_se0.25"]])


@family("MobileNetV3", "timm", every=92, some=100)
def _mobilenetv3() -> Built:
    return _inverted(
        "MobileNetV3", [["ds_r1_k3_s2_e1_c8_se0.25_nre"], ["ir_r2_k5_s2_e2_c16_se0.25"]]
    )


def _inverted(kind: str, blocks: list[list[str]]) -> Built:
    """Inverted residuals with squeeze and excitation, written down as in timm."""
    import timm
    from timm.models._efficientnet_builder import decode_arch_def, resolve_act_layer

    module = {"EfficientNet": timm.models.efficientnet, "MobileNetV3": timm.models.mobilenetv3}
    activation = resolve_act_layer({}, "swish" if kind == "EfficientNet" else "hard_swish")
    network = getattr(module[kind], kind)(
        decode_arch_def(blocks), num_classes=5, stem_size=8, num_features=24, act_layer=activation
    )
    return network, images(16)


@family("RegNetY", "timm", every=97, some=100)
def _regnety() -> Built:
    from timm.models.regnet import RegNet, RegNetCfg

    small = {"depth": 5, "w0": 8, "wa": 8.0, "wm": 1.6, "group_size": 4, "stem_width": 8}
    return RegNet(RegNetCfg(**small, se_ratio=0.25), num_classes=5), images(32)


@family("Mixer", "timm", every=55, some=82)
def _mixer() -> Built:
    from timm.models.mlp_mixer import MlpMixer

    small = {"img_size": 16, "patch_size": 4, "num_blocks": LAYERS, "embed_dim": WIDTH}
    return MlpMixer(**small, mlp_ratio=(0.5, 1.5), num_classes=5), images(16)


@family("PoolFormer", "timm", every=76, some=100)
def _poolformer() -> Built:
    from timm.models.metaformer import GroupNorm1, MetaFormer

    network = MetaFormer(
        depths=(1, 1),
        dims=(8, 16),
        downsample_norm=None,
        mlp_act=nn.GELU,
        mlp_bias=True,
        norm_layers=GroupNorm1,
        layer_scale_init_values=1e-5,
        res_scale_init_values=None,
        use_mlp_head=False,
        num_classes=5,
    )
    return network, images(32)
