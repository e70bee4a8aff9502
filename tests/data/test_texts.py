"""Sequences of tokens: packed or padded, the same for the same files, settings and seed."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.data.files import DataError
from ccamerge.data.texts import Texts
from tests.data import words as W


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return W.tokenizer(tmp_path / "tokenizer")


def tokens(data: Texts) -> Tensor:
    return torch.cat([batch["input_ids"] for batch in data])


def word(token: int) -> str:
    return W.WORDS[token]


def corpus(folder: Path, count: int = 40, length: int = 6) -> Path:
    folder.mkdir(exist_ok=True)
    texts = [W.document(number, length) for number in range(count)]
    W.write_lines(folder / "a.jsonl", texts[: count // 2])
    W.write_lines(folder / "b.jsonl", texts[count // 2 : -1])
    (folder / "c.txt").write_text(texts[-1])
    return folder


def test_documents_are_packed_with_ends_between_them(tmp_path: Path, tokenizer: Path) -> None:
    data = Texts(corpus(tmp_path / "corpus"), tokenizer, length=7, batch_size=8)
    batches = list(data)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(8, 7)] * 5
    assert all(batch.keys() == {"input_ids"} for batch in batches)
    assert batches[0]["input_ids"].dtype == torch.int64
    assert len(data) == 5
    rows = [[word(t) for t in row] for row in tokens(data).tolist()]
    assert all(row == [row[0]] * 6 + [W.END] for row in rows)
    found = [row[0] for row in rows]
    assert sorted(found) == sorted(f"w{n}" for n in range(40))  # each once
    assert found != sorted(found)
    assert sum(int(w[1:]) < 20 for w in found[:20]) not in (0, 20)  # from all files


def test_sequences_go_on_where_the_one_before_ended(tmp_path: Path, tokenizer: Path) -> None:
    short = tokens(Texts(corpus(tmp_path / "corpus"), tokenizer, length=7)).flatten()
    long = tokens(Texts(tmp_path / "corpus", tokenizer, length=10)).flatten()
    assert torch.equal(short, long)
    some = tokens(Texts(tmp_path / "corpus", tokenizer, length=7, count=3)).flatten()
    assert torch.equal(some, short[:21])


def test_a_tokenizer_without_an_end_has_nothing_between(tmp_path: Path) -> None:
    plain = W.tokenizer(tmp_path / "tokenizer", end=False)
    found = tokens(Texts(corpus(tmp_path / "corpus"), plain, length=6))
    assert (found == found[:, :1]).all()
    assert len(found) == 40


class Backwards:
    """As `os.scandir`, the other way round."""

    scan = staticmethod(os.scandir)

    def __init__(self, folder: Any = ".") -> None:
        with self.scan(folder) as entries:
            self._entries = list(entries)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._entries:
            raise StopIteration
        return self._entries.pop()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None: ...


def test_the_seed_and_nothing_else_decides(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = corpus(tmp_path / "corpus")
    (folder / "deep").mkdir()
    W.write_lines(folder / "deep" / "a.jsonl", [W.document(n) for n in range(100, 120)])
    given: dict[str, Any] = {"length": 7, "count": 30}

    def found(files: Any, seed: int = 0) -> Tensor:
        return tokens(Texts(files, tokenizer, seed=seed, **given))

    first = found(folder)
    assert torch.equal(first, found(folder))
    assert not torch.equal(first, found(folder, seed=1))
    assert torch.equal(
        first, found([folder / "deep", folder / "c.txt", folder / "b.jsonl", folder])
    )
    assert torch.equal(first, found(f"{folder}/**/*.*"))
    monkeypatch.setattr(os, "scandir", Backwards)
    assert os.listdir(folder) != [entry.name for entry in Backwards(folder)]
    assert torch.equal(first, found(folder))
    assert torch.equal(first, found(f"{folder}/**/*.*"))
    monkeypatch.undo()
    moved = folder.rename(tmp_path / "elsewhere")
    assert torch.equal(first, found(moved))


def test_batches_can_be_read_again_and_have_no_single_sequence(
    tmp_path: Path, tokenizer: Path
) -> None:
    data = Texts(corpus(tmp_path / "corpus"), tokenizer, length=7, count=17)
    assert [len(batch["input_ids"]) for batch in data] == [8, 9]
    assert torch.equal(tokens(data), tokens(data))


def test_one_document_longer_than_everything(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "book.txt").write_text("\n".join(f"w{n % 400}" for n in range(40_000)))
    found = tokens(Texts(tmp_path / "book.txt", tokenizer, length=16, count=50))
    assert found.shape == (50, 16)
    starts = [int(word(t)[1:]) for t in found[:, 4].tolist() if t > 2]
    assert len(set(starts)) > 20  # passages from all over it, not its beginning
    W.write_lines(
        tmp_path / "a.jsonl", [W.document(1, 4000), *(W.document(n, 40) for n in range(2, 102))]
    )
    mixed = tokens(Texts(tmp_path / "a.jsonl", tokenizer, length=16, count=64))
    assert (mixed == W.WORDS.index("w1")).float().mean() < 0.8  # it does not fill them all


def test_tokens_that_stand_for_many_characters(tmp_path: Path) -> None:
    """More of the files is read than the first guess of what is needed."""
    words = [W.END, "<pad>", "<odd>", *(f"{n:050d}" for n in range(90))]
    long = W.tokenizer(tmp_path / "tokenizer", words=words)
    W.write_lines(tmp_path / "a.jsonl", [f"{n:050d}" for n in range(90)])
    found = tokens(Texts(tmp_path / "a.jsonl", long, length=7, count=25)).flatten()
    assert len(found) == 175
    assert len(set(found[::2].tolist())) == 88  # every other is an end of text


def test_empty_documents_are_left_out(tmp_path: Path, tokenizer: Path) -> None:
    W.write_lines(tmp_path / "a.jsonl", ["w1 w1 w1", "", None, " \n", "w2 w2 w2"])
    found = tokens(Texts(tmp_path / "a.jsonl", tokenizer, length=4))
    assert sorted(word(row[0]) for row in found.tolist()) == ["w1", "w2"]
    padded = tokens(Texts(tmp_path / "a.jsonl", tokenizer, pack=False))
    assert sorted(word(row[0]) for row in padded.tolist()) == ["w1", "w2"]


def test_unicode(tmp_path: Path, tokenizer: Path) -> None:
    W.write_lines(tmp_path / "a.jsonl", ["naïve 日本\u2028🙂"])
    (found,) = tokens(Texts(tmp_path / "a.jsonl", tokenizer, length=4)).tolist()
    assert [word(t) for t in found] == ["naïve", "日本", "🙂", W.END]


def test_documents_are_padded_behind_and_masked(tmp_path: Path, tokenizer: Path) -> None:
    texts = [W.document(n, n) for n in range(1, 9)]
    W.write_lines(tmp_path / "a.jsonl", texts)
    data = Texts(tmp_path / "a.jsonl", tokenizer, pack=False, length=5, batch_size=4)
    first, second = data
    assert first.keys() == {"input_ids", "attention_mask"}
    assert first["input_ids"].shape == second["input_ids"].shape == (4, 5)
    rows: Counter[str] = Counter()
    for batch in (first, second):
        for row, mask in zip(
            batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True
        ):
            count = sum(mask)
            assert mask == [1] * count + [0] * (5 - count)
            assert row[:count] == [row[0]] * count
            assert row[count:] == [0] * (5 - count)  # the end of text, as no padding is known
            rows[word(row[0])] = count
    assert rows == {f"w{n}": min(n, 5) for n in range(1, 9)}
    shorter = next(iter(Texts(tmp_path / "a.jsonl", tokenizer, pack=False, length=50)))
    assert shorter["input_ids"].shape == (8, 8)  # as long as the longest


@pytest.mark.parametrize("pack", [True, False])
def test_labels_are_the_next_tokens(tmp_path: Path, tokenizer: Path, pack: bool) -> None:
    W.write_lines(
        tmp_path / "a.jsonl", [" ".join(f"w{n + k}" for k in range(n)) for n in range(2, 30)]
    )
    given: dict[str, Any] = {"length": 6, "pack": pack, "count": 20}
    data = Texts(tmp_path / "a.jsonl", tokenizer, labels=True, **given)
    for batch in data:
        inputs, labels = batch["input_ids"], batch["labels"]
        assert inputs.shape == labels.shape == (len(inputs), 6)
        known = labels != -100
        assert torch.equal(labels[:, :-1][known[:, :-1]], inputs[:, 1:][known[:, :-1]])
        if pack:
            assert known.all()
        else:
            counted = batch["attention_mask"].sum(1)
            whole = known.sum(1)
            assert ((whole == counted) | (whole == counted - 1)).all()
            assert (whole[counted < 6] == counted[counted < 6] - 1).all()


@pytest.mark.parametrize("pack", [True, False])
def test_fewer_than_asked_for_is_told(
    tmp_path: Path, tokenizer: Path, pack: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = corpus(tmp_path / "corpus")
    assert len(tokens(Texts(folder, tokenizer, length=7, pack=pack))) == 40
    assert caplog.messages == []  # nothing was asked for
    with caplog.at_level(logging.WARNING, "ccamerge"):
        assert len(tokens(Texts(folder, tokenizer, length=7, count=41, pack=pack))) == 40
    [message] = caplog.messages
    because = "280 tokens" if pack else "40 documents with text"
    assert message == (
        f"{folder / 'a.jsonl'} and 2 more files: {because}, so there are 40 sequences of the 41 "
        "that were asked for"
    )


def refuses(message: str, *args: Any, **settings: Any) -> None:
    with pytest.raises(DataError, match=message):
        Texts(*args, **settings).check()


def test_what_is_too_little_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    path = W.write_lines(tmp_path / "a.jsonl", ["w1 w2 w3", "w4"])
    text = re.escape(f"{path}: 6 tokens in all, too few for one sequence of 7; give a smaller")
    refuses(text, path, tokenizer, length=7)
    (tmp_path / "empty.txt").touch()
    refuses("empty.txt: 0 tokens in all", tmp_path / "empty.txt", tokenizer)
    refuses(
        "empty.txt: no document has a text of 1 token or more",
        tmp_path / "empty.txt",
        tokenizer,
        pack=False,
    )


def test_files_that_are_not_there(tmp_path: Path, tokenizer: Path) -> None:
    refuses(r"missing\.jsonl: no such file", tmp_path / "missing.jsonl", tokenizer)
    refuses(r"\*\.jsonl: the pattern matches no file", tmp_path / "*.jsonl", tokenizer)
    refuses("hold one file at least, got none", [], tokenizer)
    (tmp_path / "empty").mkdir()
    refuses(r"empty: the folder has no file that ends in .*\.jsonl", tmp_path / "empty", tokenizer)
    (tmp_path / "table.csv").touch()
    refuses(r"table\.csv: unknown kind of file; expected", tmp_path / "table.csv", tokenizer)
    with pytest.raises(TypeError, match=r"files\[1\] must be a path, got int 3"):
        Texts([tmp_path, 3], tokenizer)  # type: ignore[list-item]


def test_tokenizers_that_are_not_there(tmp_path: Path, tokenizer: Path) -> None:
    path = W.write_lines(tmp_path / "a.jsonl", ["w1"])
    refuses(r"tokenizer: no such folder gpt2 \(it is read from local files", path, "gpt2")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "llama"}')
    refuses("bare: expected tokenizer.json", path, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").write_text("{")
    refuses("tokenizer .*bare: cannot be loaded: ", path, tmp_path / "bare")
    with pytest.raises(TypeError, match="tokenizer must be a folder"):
        Texts(path, 3)


def test_a_tokenizer_may_be_a_file_or_loaded_already(tmp_path: Path, tokenizer: Path) -> None:
    import transformers

    path = W.write_lines(tmp_path / "a.jsonl", ["w1 w2 w3", "w4 w5 w6"])
    auto: Any = transformers.AutoTokenizer
    own = tokens(Texts(path, auto.from_pretrained(tokenizer), length=4))
    assert torch.equal(own, tokens(Texts(path, tokenizer, length=4)))
    bare = tokens(Texts(path, tokenizer / "tokenizer.json", length=3))  # which has no end of text
    assert torch.equal(bare, own[:, :3])


def test_the_length_is_what_the_model_takes(tmp_path: Path, tokenizer: Path) -> None:
    path = W.write_lines(tmp_path / "a.jsonl", [W.document(1, 3000)])
    assert tokens(Texts(path, tokenizer)).shape[1] == 512
    (tokenizer / "config.json").write_text(json.dumps({"max_position_embeddings": 32}))
    assert tokens(Texts(path, tokenizer)).shape[1] == 32
    (tokenizer / "config.json").write_text(json.dumps({"n_positions": 16}))
    assert tokens(Texts(path, tokenizer)).shape[1] == 16
    assert tokens(Texts(path, tokenizer, length=40)).shape[1] == 40


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"length": 0}, ValueError, "length must be a whole number of 1 or more, got 0"),
        ({"count": 2.5}, TypeError, r"count must be a whole number, got float 2\.5"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number of 1 or more, got 0"),
        ({"pack": "no"}, TypeError, "pack must be True or False, got str 'no'"),
        ({"seed": -1}, ValueError, "seed must be a whole number >= 0"),
        ({"field": ""}, ValueError, "field must not be empty"),
        ({"labels": 2}, TypeError, "labels must be True or False"),
    ],
)
def test_settings_are_checked(
    tmp_path: Path, settings: Any, error: type[Exception], message: str
) -> None:
    path = W.write_lines(tmp_path / "a.jsonl", ["w1"])
    with pytest.raises(error, match=message):
        Texts(path, tmp_path, **settings)


def llama(seed: int, rows: int = len(W.WORDS), positions: int = 32) -> Any:
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=positions,
    )
    return transformers.LlamaForCausalLM(config).eval()


class Small(nn.Module):
    """Scores of the next token out of each one alone."""

    def __init__(self, rows: int = len(W.WORDS)) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, 12)
        self.layers = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, rows))

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor) -> Any:
        return self.layers(self.embedding(input_ids))


def test_models_are_merged_with_them(tmp_path: Path, tokenizer: Path) -> None:
    data = ccamerge.data.Texts(corpus(tmp_path / "corpus"), tokenizer, length=8, batch_size=16)
    models = [Small(), Small()]
    collected = ccamerge.collect(models, data, progress=False, holdout=0)
    assert collected.samples == 35
    assert collected.data == data.fingerprint
    by_hand = ccamerge.collect(models, list(data), progress=False, holdout=0)
    assert by_hand.data == {}
    for space, folds in collected.matched.items():
        for own, other in zip(folds, by_hand.matched[space], strict=True):
            for key, value in own.state_dict().items():
                assert (value == other.state_dict()[key]).all(), (space, key)
    collected.save(tmp_path / "stats.safetensors")
    assert ccamerge.Statistics.load(tmp_path / "stats.safetensors").data == data.fingerprint
    labelled = Texts(tmp_path / "corpus", tokenizer, length=8, labels=True)
    assert 0 <= ccamerge.evaluate(models[0], labelled) <= 1


def test_models_that_do_not_take_them_are_told(tmp_path: Path, tokenizer: Path) -> None:
    data = Texts(corpus(tmp_path / "corpus"), tokenizer, length=8)
    small = [Small(20), Small(20)]
    text = rf"knows {len(W.WORDS)} tokens \(the data has 'w39', number 42\), but the model's emb"
    with pytest.raises(DataError, match=text):
        ccamerge.collect(small, data, progress=False)
    with pytest.raises(DataError, match="but the model's embedding 43"):  # though none is larger
        data.check(llama(0, rows=43))
    data.check(llama(0))
    short = llama(0, positions=7)
    with pytest.raises(DataError, match="length must be at most 7, which is what the model takes"):
        data.check(short)


def test_a_token_added_to_a_tokenizer_does_no_harm_unless_it_occurs(
    tmp_path: Path, tokenizer: Path
) -> None:
    import transformers

    auto: Any = transformers.AutoTokenizer
    own = auto.from_pretrained(tokenizer)
    own.add_special_tokens({"pad_token": "<more>"})
    path = W.write_lines(tmp_path / "a.jsonl", ["w1 w2 w3", "w4 w5"])
    Texts(path, own, length=3).check(llama(0))
    with pytest.raises(DataError, match=f"'<more>', number {len(W.WORDS)}"):
        Texts(path, own, length=3, pack=False).check(llama(0))


def test_the_fingerprint_tells_files_and_settings_apart(tmp_path: Path, tokenizer: Path) -> None:
    folder = corpus(tmp_path / "corpus")
    usual = Texts(folder, tokenizer).fingerprint
    assert usual == Texts(f"{folder}/*.*", tokenizer, length=512).fingerprint
    assert json.loads(json.dumps(usual)) == usual
    assert (usual["kind"], usual["files"]) == ("Texts", 3)
    others = [
        Texts(folder, tokenizer, **one).fingerprint
        for one in ({"seed": 1}, {"length": 9}, {"pack": False}, {"count": 3}, {"field": "id"})
    ]
    (folder / "c.txt").rename(folder / "d.txt")
    others.append(Texts(folder, tokenizer).fingerprint)
    (folder / "d.txt").rename(folder / "c.txt")
    assert Texts(folder, tokenizer).fingerprint == usual
    with (folder / "c.txt").open("a") as file:
        file.write("more")
    others.append(Texts(folder, tokenizer).fingerprint)
    W.tokenizer(tmp_path / "tokenizer", words=[*W.WORDS, "more"])
    others.append(Texts(folder, tokenizer).fingerprint)
    assert len({json.dumps(f, sort_keys=True) for f in [usual, *others]}) == len(others) + 1
