# ruff: noqa: E501  (the messages are compared whole)
"""Local files for data in a configuration: what it may hold, and mistakes by their lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ccamerge.config.data_files import DataFiles
from ccamerge.config.importing import ConfigError, Factory
from ccamerge.config.model import Evaluation
from ccamerge.config.reader import load_config

START = """\
models: [{model: runs/a/model.safetensors}, {model: runs/b}]
architecture: {factory: "torch.nn:Linear"}
"""

TEXT = """\
data:
  text: corpus/*.jsonl
  field: body
  tokenizer: vocabulary
  length: 128
  count: 1_000
  batch_size: 4
  pack: false
  seed: 3
"""
IMAGES = """\
data:
  images: /pictures
  processor: runs/b
  size: [32, 48]
  mean: [0.5, 0.5, 1]
  std: [0.25, 0.25, 0.25]
"""
ARRAYS = """\
data: {arrays: x.npz, key: [a, b], count: 7}
evaluation: {arrays: x.npz, key: [a, b], labels: y, metric: cross_entropy, ensemble: outputs}
"""
LABELLED = """\
evaluation:
  images: test
  size: 8
  metric: accuracy
"""
SEVERAL = "data:\n  text: [a.txt, ../b.parquet]\n"


def write(folder: Path, text: str) -> Path:
    (folder / "merge.yml").write_text(START + text, encoding="utf-8")
    return folder / "merge.yml"


def test_text(tmp_path: Path) -> None:
    found = load_config(write(tmp_path, TEXT)).data
    settings = {
        "field": "body",
        "tokenizer": tmp_path / "vocabulary",
        "length": 128,
        "count": 1000,
        "batch_size": 4,
        "pack": False,
        "seed": 3,
    }
    assert found == DataFiles("text", (f"{tmp_path}/corpus/*.jsonl",), settings)
    assert isinstance(found, DataFiles)
    assert found.source == f"{tmp_path}/merge.yml:4: data"
    assert found.model == tmp_path / "runs/a/model.safetensors"


def test_several_files(tmp_path: Path) -> None:
    found = load_config(write(tmp_path, SEVERAL)).data
    assert found == DataFiles("text", (f"{tmp_path}/a.txt", f"{tmp_path.parent}/b.parquet"))


def test_the_model_is_the_base_model(tmp_path: Path) -> None:
    """A folder, or the one in which its file lies."""
    said = {"pretrained_cfg": {"input_size": [3, 2, 4], "mean": [0] * 3, "std": [1] * 3}}
    for folder in ("a", "b"):
        (tmp_path / "runs" / folder).mkdir(parents=True)
    (tmp_path / "runs" / "a" / "config.json").write_text(json.dumps(said))
    image = pytest.importorskip("PIL.Image", reason="comes with the data extra")
    image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    data = load_config(write(tmp_path, "data: {images: .}\n")).data
    assert data is not None
    [batch] = data()
    assert batch.shape == (1, 3, 2, 4)
    other = load_config(write(tmp_path, "base_model: runs/b\ndata: {images: .}\n")).data
    assert other is not None
    with pytest.raises(ConfigError, match=rf"config.json in {tmp_path}/runs/b$"):
        other.load()


def test_images(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, IMAGES)).data == DataFiles(
        "images",
        ("/pictures",),
        {
            "processor": tmp_path / "runs/b",
            "size": (32, 48),
            "mean": (0.5, 0.5, 1.0),
            "std": (0.25, 0.25, 0.25),
        },
    )


def test_data_of_an_evaluation_has_labels(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, ARRAYS))
    own, file = {"key": ("a", "b")}, (f"{tmp_path}/x.npz",)
    assert config.data == DataFiles("arrays", file, {**own, "count": 7})
    assert config.evaluation == Evaluation(
        DataFiles("arrays", file, {**own, "labels": "y"}, labelled=True),
        metric="cross_entropy",
        better="lower",
        ensemble="outputs",
    )
    evaluation = load_config(write(tmp_path, LABELLED)).evaluation
    assert evaluation == Evaluation(
        DataFiles("images", (f"{tmp_path}/test",), {"size": (8, 8)}, labelled=True)
    )


@pytest.mark.parametrize("text", [TEXT, IMAGES, ARRAYS, LABELLED, SEVERAL])
def test_written_back_is_the_same(tmp_path: Path, text: str) -> None:
    config = load_config(write(tmp_path, text))
    (tmp_path / "out").mkdir()
    for folder in (tmp_path, tmp_path / "out"):
        (folder / "again.yml").write_text(config.to_yaml(folder))
        again = load_config(folder / "again.yml")
        assert (again.data, again.evaluation) == (config.data, config.evaluation)
        assert str(tmp_path) not in config.to_yaml(folder)


def test_a_function_still_is_one(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "data: {factory: 'a:b', arguments: {text: 3}}\n"))
    assert config.data == Factory("a:b", {"text": 3})


BAD = [
    ("data: {text: a.txt, images: b}\n", "3: data: has text and images; give one of them"),
    ("data: {text: a.txt, factory: 'a:b'}\n", "3: data: has text and factory; give one of them"),
    ("data: {text: a.txt, batch: 3}\n", "3: data.batch: unknown key; did you mean 'batch_size'?"),
    ("data: {text: a.txt, size: 3}\n", "3: data.size: unknown key; known: text, field, tokenizer, length, count, batch_size, pack, seed"),
    ("data:\n  text:\n", "4: data.text: has no value"),
    ("data:\n  text: []\n", "4: data.text: expected one file at least, got none"),
    ("data:\n  text: [a.txt, 3]\n", "4: data.text[1]: expected a file's path, got 3"),
    ("data:\n  images: [a, b]\n", "4: data.images: expected a file's path, got a list"),
    ("data:\n  text: a\n  length: 0\n", "5: data.length: must be a whole number of 1 or more, got 0"),
    ("data:\n  text: a\n  count: many\n", "5: data.count: must be a whole number, got str 'many'"),
    ("data:\n  text: a\n  pack: 3\n", "5: data.pack: must be True or False, got int 3"),
    ("data:\n  text: a\n  seed: -3\n", "5: data.seed: must be a whole number >= 0 and below 2**63, got -3"),
    ("data:\n  text: a\n  field: 3\n", "5: data.field: must be a name, got int 3"),
    ("data:\n  text: a\n  tokenizer: 3\n", "5: data.tokenizer: expected a file's path, got 3"),
    ("data:\n  images: a\n  size: [1, x]\n", "5: data.size: size[1] must be a whole number, got str 'x'"),
    ("data:\n  images: a\n  std: [0]\n", "5: data.std: must be positive, got [0.0]"),
    ("data:\n  images: a\n  mean: 2020-99-99\n", "5: data.mean: cannot be read: month must be in 1..12"),
    ("data:\n  arrays: a.npy\n  key: []\n", "5: data.key: must hold one name at least, got none"),
    ("data:\n  arrays: a.npy\n  labels: y\n", "5: data.labels: unknown key; known: arrays, key, count, batch_size, seed"),
    ("evaluation:\n  arrays: a.npz\n  metric: accuracy\n", "4: evaluation.labels: missing; it is the array of the labels"),
    ("evaluation:\n  text: a.txt\n  labels: y\n", "5: evaluation.labels: unknown key; known: text, field, tokenizer, length, count, batch_size, pack, seed, metric, better, loss, ensemble"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD)
def test_each_mistake_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert caught.value.problems == (f"{tmp_path}/merge.yml:{message}",)


def test_a_key_that_is_misspelt(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "data:\n  txt: a.txt\n"))
    start = f"{tmp_path}/merge.yml:4: data"
    assert caught.value.problems == (
        f"{start}.txt: unknown key; did you mean 'text'?",
        f'{start}.factory: missing; expected "package.module:function", or local files: text, images, arrays',
    )


def test_what_cannot_be_read_says_where_it_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "data:\n  arrays: missing.npz\nevaluation:\n  text: '*.jsonl'\n")
    config = load_config(path)
    assert config.data is not None
    assert config.evaluation is not None
    with pytest.raises(
        ConfigError, match=rf"^{path}:4: data: {tmp_path}/missing\.npz: no such file$"
    ):
        config.data.load()
    text = rf"^{path}:6: evaluation: {tmp_path}/\*\.jsonl: the pattern matches no file$"
    with pytest.raises(ConfigError, match=text):
        config.evaluation.data.load()
