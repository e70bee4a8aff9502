"""Language models whose head is untied keep it so in a file, and are loaded so."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import ccamerge
from tests import models as M
from tests.families import families as F
from tests.families.packages import available

pytestmark = pytest.mark.filterwarnings("ignore:aligned. :RuntimeWarning")  # tested apart


def test_an_untied_head_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    available("transformers")
    import transformers

    first, batch = F.FAMILIES["GPT-2"].build()
    models = [M.randomise(copy.deepcopy(first), seed).double() for seed in range(2)]
    result = ccamerge.merge(models, [batch], ties="untie", repair="none", progress=False)
    assert list(result.report.untied) == ["lm_head.weight"]
    for model in models:
        assert model.config.tie_word_embeddings
        assert model.lm_head.weight is model.transformer.wte.weight
    result.model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert not torch.equal(loaded.lm_head.weight, loaded.transformer.wte.weight)
    found, wanted = F.called(loaded.eval(), batch), F.called(result.model, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
