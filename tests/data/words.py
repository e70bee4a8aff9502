"""A tokenizer made by hand, of words and single characters, and files of documents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.families.packages import available

END = "<end>"
WORDS = [END, "<pad>", "<odd>", *(f"w{number}" for number in range(400)), "naïve", "日本", "🙂"]
ODD = WORDS.index("<odd>")


def tokenizer(folder: Path, *, end: bool = True, words: Sequence[str] = WORDS) -> Path:
    """One token a word, ``<odd>`` what it does not know; skips where there is no transformers."""
    available("transformers")
    import tokenizers
    import transformers

    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<odd>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special: dict[str, Any] = {"eos_token": END} if end else {}
    fast: Any = transformers.PreTrainedTokenizerFast
    fast(tokenizer_object=made, unk_token="<odd>", **special).save_pretrained(folder)
    return folder


def document(number: int, length: int = 6) -> str:
    """Words that tell which document it is."""
    return " ".join([f"w{number}"] * length)


def write_lines(path: Path, texts: Sequence[Any], field: str = "text", end: str = "\n") -> Path:
    rows = [json.dumps({"id": place, field: text}) for place, text in enumerate(texts)]
    path.write_bytes("".join(row + end for row in rows).encode())
    return path
