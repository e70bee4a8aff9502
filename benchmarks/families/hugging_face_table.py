"""Families of transformers with tiny configurations and random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from families import Case, Sample, features, named, ones, tokens

transformers.utils.logging.set_verbosity_error()

WORDS, LENGTH = 40, 8

TEXT = named(input_ids=tokens(WORDS, LENGTH))
MASKED = named(input_ids=tokens(WORDS, LENGTH), attention_mask=ones(LENGTH))
BOTH = named(input_ids=tokens(WORDS, LENGTH), decoder_input_ids=tokens(WORDS, LENGTH))

Settings = dict[str, Any]

LLAMA: Settings = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "use_cache": False,
}
"""As most decoders since Llama name their sizes."""
NEOX: Settings = {k: v for k, v in LLAMA.items() if k not in ("num_key_value_heads", "head_dim")}
GPT: Settings = {
    "vocab_size": WORDS,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "use_cache": False,
}
EXPERTS: Settings = {
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
BERT: Settings = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
BART: Settings = {
    "vocab_size": WORDS,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
    "use_cache": False,
}
T5: Settings = {
    "vocab_size": WORDS,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 4,
    "use_cache": False,
}
VIT: Settings = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
STAGES: Settings = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
SWIN: Settings = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 4,
}
SPEECH: Settings = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": WORDS,
    "num_feat_extract_layers": 2,
}


def pixels(size: int = 16) -> Sample:
    return named(pixel_values=features(3, size, size))


def model(kind: str, family: str, sample: Sample, samples: int = 8, **settings: Any) -> Case:
    """A network of a family by one of transformers' classes, an Auto class or the network's own."""
    config = AutoConfig.for_model(family, **settings)
    cls = getattr(transformers, kind)
    found = cls.from_config(config) if kind.startswith("Auto") else cls(config)
    return Case(found.to(torch.float32), sample, samples)


def rows(
    kind: str, families: str, sample: Sample, common: Settings, **settings: Any
) -> dict[str, Callable[[], Case]]:
    """A builder for each of several families that name their sizes alike."""
    merged = {**common, **settings}
    return {
        family: functools.partial(model, kind, family, sample, **merged)
        for family in families.split()
    }


def parts(*settings: Settings, **more: Any) -> Settings:
    return {key: value for each in (*settings, more) for key, value in each.items()}


CAUSAL, MASK, PLAIN = "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModel"
CLASSES = "AutoModelForImageClassification"

TABLE: dict[str, Callable[[], Case]] = {
    **rows(CAUSAL, "llama mistral qwen2 qwen3 gemma gemma2 phi3 stablelm starcoder2", TEXT, LLAMA),
    **rows(CAUSAL, "olmo olmo2 cohere granite glm smollm3 helium nemotron", TEXT, LLAMA),
    **rows(CAUSAL, "gemma3_text", TEXT, LLAMA, layer_types=["sliding_attention", "full_attention"]),
    **rows(CAUSAL, "phi persimmon gpt_neox", TEXT, NEOX),
    **rows(CAUSAL, "mixtral qwen2_moe olmoe", TEXT, parts(LLAMA, EXPERTS)),
    **rows(CAUSAL, "gpt2", TEXT, GPT),
    **rows(CAUSAL, "gptj codegen", TEXT, GPT, rotary_dim=4),
    **rows(CAUSAL, "gpt_bigcode", TEXT, GPT),
    **rows(
        CAUSAL,
        "gpt_neo",
        TEXT,
        NEOX,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
    ),
    **rows(CAUSAL, "opt", TEXT, NEOX, ffn_dim=48, word_embed_proj_dim=32),
    **rows(CAUSAL, "bloom", TEXT, GPT, hidden_size=32),
    **rows(CAUSAL, "falcon", TEXT, NEOX, new_decoder_architecture=False, alibi=False),
    **rows(CAUSAL, "mpt", TEXT, GPT, d_model=32, n_heads=4, n_layers=2, max_seq_len=32),
    **rows(CAUSAL, "biogpt", TEXT, NEOX),
    **rows(CAUSAL, "xglm", TEXT, NEOX, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4),
    **rows(CAUSAL, "mamba", TEXT, NEOX, state_size=4, time_step_rank=4),
    **rows(MASK, "bert roberta camembert xlm-roberta ernie mpnet rembert roformer", TEXT, BERT),
    **rows(MASK, "albert electra convbert", TEXT, BERT, embedding_size=16),
    **rows(MASK, "deberta deberta-v2", TEXT, BERT, relative_attention=True, pos_att_type="c2p|p2c"),
    **rows(MASK, "nystromformer", TEXT, BERT, num_landmarks=4, segment_means_seq_len=LENGTH),
    **rows(MASK, "fnet", TEXT, BERT),
    **rows(
        MASK,
        "mobilebert",
        TEXT,
        BERT,
        embedding_size=16,
        true_hidden_size=16,
        intra_bottleneck_size=16,
    ),
    **rows(MASK, "squeezebert", TEXT, BERT, embedding_size=32),
    **rows(
        MASK,
        "distilbert",
        MASKED,
        {"vocab_size": WORDS},
        dim=32,
        hidden_dim=48,
        n_layers=2,
        n_heads=4,
    ),
    **rows(MASK, "modernbert", TEXT, BERT, bos_token_id=1, eos_token_id=1, cls_token_id=1),
    **rows(MASK, "esm", MASKED, BERT, position_embedding_type="rotary", mask_token_id=3),
    **rows("AutoModelForSeq2SeqLM", "bart mbart pegasus marian blenderbot", BOTH, BART),
    **rows("AutoModelForSeq2SeqLM", "t5 mt5", BOTH, T5),
    **rows(CLASSES, "vit dinov2 beit ijepa vit_msn", pixels(), VIT),
    **rows("DeiTForImageClassification", "deit", pixels(), VIT),
    **rows(CLASSES, "swin swinv2", pixels(32), SWIN),
    **rows(CLASSES, "convnext convnextv2", pixels(32), STAGES, patch_size=4),
    **rows(
        CLASSES,
        "resnet",
        pixels(32),
        STAGES,
        embedding_size=8,
        layer_type="basic",
    ),
    **rows(CLASSES, "regnet", pixels(32), STAGES, embedding_size=8, groups_width=4),
    **rows(
        CLASSES,
        "segformer",
        pixels(32),
        {},
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
    ),
    **rows(
        CLASSES,
        "poolformer",
        pixels(32),
        {},
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_encoder_blocks=2,
        patch_sizes=[7, 3],
        strides=[4, 2],
        padding=[2, 1],
        pool_size=3,
    ),
    **rows(PLAIN, "clip_text_model", TEXT, BERT, eos_token_id=1, projection_dim=16),
    **rows("SiglipTextModel", "siglip_text_model", TEXT, BERT, projection_size=16),
    **rows(PLAIN, "clip_vision_model siglip_vision_model", pixels(), VIT),
    **rows(PLAIN, "wav2vec2 hubert", named(input_values=features(200)), SPEECH),
    **rows(
        "AutoModelForSpeechSeq2Seq",
        "whisper",
        named(input_features=features(8, 16), decoder_input_ids=tokens(WORDS, LENGTH)),
        BART,
        num_mel_bins=8,
        max_source_positions=8,
        max_target_positions=16,
    ),
}
