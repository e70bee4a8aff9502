"""The README's example of language models works as printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import models as M
from tests.families import families as F
from tests.families.packages import available

README = Path(__file__).parents[2] / "README.md"


def example() -> str:
    """The one block of Python that imports transformers."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    [found] = [block for block in blocks if "from transformers import" in block]
    return str(found)


@pytest.mark.filterwarnings("ignore:aligned. :RuntimeWarning")  # tested apart
@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
def test_language_models_merge_as_printed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    available("transformers")
    import transformers

    monkeypatch.chdir(tmp_path)
    first, batch = F.FAMILIES[name].build()
    for seed, folder in enumerate(["runs/first", "runs/second"]):
        M.randomise(first, seed).save_pretrained(folder)
    torch.save(batch["input_ids"], "tokens.pt")
    code, scope = example(), dict[str, Any]()
    assert len(code.strip().splitlines()) <= 12
    exec(code, scope)

    merged = transformers.AutoModelForCausalLM.from_pretrained("runs/merged").eval()
    assert type(merged) is type(first)
    found = F.called(merged, batch)
    torch.testing.assert_close(found, F.called(scope["result"].model, batch))
    for model in scope["models"]:
        assert (found - F.called(model, batch)).norm() > 1e-2 * found.norm()
