"""Small folders of transformers, for tests that read and write such."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from tests.families.packages import available

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama(
    folder: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16, shard: str = "8KB", **own: Any
) -> Any:
    """A network with random parameters, saved as transformers does, in shards if it is larger."""
    available("transformers")
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**{**SHAPE, "tie_word_embeddings": True, **own})
    model = transformers.LlamaForCausalLM(config).to(dtype).eval()
    transformers.utils.logging.disable_progress_bar()
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer_config.json").write_text('{"made": "here"}')
    (folder / "training_args.bin").write_bytes(b"a pickle")
    return model


def changed(folder: Path, **entries: Any) -> None:
    """Set entries of a folder's configuration; None takes one out."""
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


CONFIG = """\
base_model: one
models:
  - model: one
  - model: two
architecture: {transformers: auto}
data: {factory: "tokens_module:batches", arguments: {count: 8}}
evaluation: {factory: "tokens_module:batches", arguments: {count: 2, seed: 1}}
"""

MODULE = '''\
"""Tokens, and the next ones as labels."""
import torch


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        ids = torch.randint(64, (8, 16), generator=generator)
        yield {"input_ids": ids, "labels": ids.roll(-1, 1)}
'''
