"""Images out of folders, prepared as they are told to be."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ccamerge.data.files import DataError
from ccamerge.data.images import Images
from ccamerge.data.preparing import Preparation, preparation
from tests.families.packages import available

Image = pytest.importorskip("PIL.Image", reason="comes with the data extra")

PLAIN: dict[str, Any] = {"size": 8, "mean": [0, 0, 0], "std": [1, 1, 1]}


def picture(path: Path, number: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Any:
    """Of one colour, which tells its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (number, 255 - number, 7) if mode == "RGB" else number
    image = Image.new(mode, size, colour)
    image.save(path)
    return image


def folder(root: Path, count: int = 20) -> Path:
    for number in range(count):
        picture(root / ("cat" if number % 2 else "dog/deep") / f"{number:02d}.png", number)
    return root


def numbers(data: Images) -> list[int]:
    found = []
    for batch in data:
        images = batch[0] if isinstance(batch, tuple) else batch
        found += [round(255 * float(image[0, 0, 0])) for image in images]
    return found


def test_images_of_any_depth(tmp_path: Path) -> None:
    data = Images(folder(tmp_path / "images"), **PLAIN, batch_size=8)
    batches = list(data)
    assert [tuple(batch.shape) for batch in batches] == [(8, 3, 8, 8), (8, 3, 8, 8), (4, 3, 8, 8)]
    assert batches[0].dtype == torch.float32
    found = numbers(data)
    assert sorted(found) == list(range(20))
    assert found != sorted(found)
    assert len(data) == 3


def test_the_seed_and_nothing_else_decides(tmp_path: Path) -> None:
    root = folder(tmp_path / "images")
    first = numbers(Images(root, **PLAIN, count=9))
    assert len(first) == 9
    assert first == numbers(Images(root, **PLAIN, count=9))
    assert first != numbers(Images(root, **PLAIN, count=9, seed=1))
    (root / "cat" / "._01.jpg").write_text("not an image, as some file systems leave them")
    (root / "cat" / "notes.txt").touch()
    assert first == numbers(Images(root.rename(tmp_path / "moved"), **PLAIN, count=9))


def test_labels_are_the_outermost_folders(tmp_path: Path) -> None:
    root = folder(tmp_path / "images")
    for images, labels in Images(root, **PLAIN, labels=True):
        parity = torch.tensor([round(255 * float(i[0, 0, 0])) % 2 for i in images])
        assert torch.equal(labels, 1 - parity)  # cat, of odd numbers, comes before dog
    picture(root / "bare.png")
    Images(root, **PLAIN)
    with pytest.raises(DataError, match=r"bare\.png: has no label: expected it in a folder of"):
        Images(root, **PLAIN, labels=True)


def test_normalised_by_channel(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 51)
    mean, std = [0.1, 0.2, 0.3], [0.5, 2.0, 4.0]
    [batch] = Images(tmp_path, size=4, mean=mean, std=std)
    values = torch.tensor([51, 204, 7]) / 255
    expected = (values - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(batch, expected.view(1, 3, 1, 1).expand(1, 3, 4, 4))


def test_one_channel_makes_images_grey(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 102, mode="L")
    picture(tmp_path / "b.png", 0, mode="1")
    [batch] = Images(tmp_path, size=[2, 3], mean=[0.4], std=[0.1], count=2)
    assert batch.shape == (2, 1, 2, 3)
    assert sorted(batch.mean((1, 2, 3)).tolist()) == pytest.approx([-4, 0], abs=1e-5)


def gradient(width: int, height: int) -> Any:
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows, columns, rows + columns], -1).astype(np.uint8))


def made(image: Any, **settings: Any) -> torch.Tensor:
    usual = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "factor": 1.0}
    return Preparation(**{**usual, **settings})(image)


def test_the_shorter_side_fits_and_the_middle_is_cut_out() -> None:
    for size in ((40, 20), (20, 40)):
        found = made(gradient(*size), size=(20, 20))
        left, top = (size[0] - 20) // 2, (size[1] - 20) // 2
        expected = np.array(gradient(*size))[top : top + 20, left : left + 20]
        assert torch.equal(found, torch.tensor(expected).permute(2, 0, 1).float())


def test_a_share_is_cut_out_of_a_larger_one() -> None:
    resized = gradient(100, 60).resize((80, 48), Image.Resampling.BICUBIC)
    expected = np.array(resized)[3:45, 19:61]
    found = made(gradient(100, 60), size=(42, 42), share=0.875, filter=3)
    assert torch.equal(found, torch.tensor(expected).permute(2, 0, 1).float())


def test_squashed() -> None:
    expected = np.array(gradient(100, 60).resize((30, 20), Image.Resampling.BILINEAR))
    found = made(gradient(100, 60), size=(20, 30), squash=True)
    assert torch.equal(found, torch.tensor(expected).permute(2, 0, 1).float())


HUGGING_FACE = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
    "resample": 3,
    "size": {"shortest_edge": 256},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
}
TIMM = {
    "architecture": "resnet18",
    "pretrained_cfg": {
        "input_size": [3, 224, 192],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
    },
}


def said(folder: Path, name: str, content: Any, **given: Any) -> Preparation:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    usual = dict.fromkeys(("size", "mean", "std"))
    return preparation(folder, **{**usual, **given})


def test_what_a_model_of_transformers_says(tmp_path: Path) -> None:
    name = "preprocessor_config.json"
    found = said(tmp_path, name, HUGGING_FACE)
    assert found == Preparation((224, 224), (0.5,) * 3, (0.25,) * 3, 0.875, False, 3, 1 / 255)
    exact = {**HUGGING_FACE, "do_center_crop": False, "size": {"height": 20, "width": 30}}
    found = said(tmp_path, name, {**exact, "resample": 2, "rescale_factor": 0.5})
    assert found == Preparation((20, 30), (0.5,) * 3, (0.25,) * 3, 1.0, True, 2, 0.5)
    found = said(tmp_path, name, {"size": 64, "do_normalize": False, "do_rescale": False})
    assert found == Preparation((64, 64), (0.0,) * 3, (1.0,) * 3, 1.0, True, 2, 1.0)


def test_what_a_model_of_timm_says(tmp_path: Path) -> None:
    found = said(tmp_path, "config.json", TIMM)
    assert found == Preparation((224, 192), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.9, False, 3)
    own = {**TIMM["pretrained_cfg"], "crop_mode": "squash"}  # type: ignore[dict-item]
    assert said(tmp_path, "config.json", {"pretrained_cfg": own}).squash


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ViT", {}),
        ("CLIP", {}),
        ("DeiT", {}),
        ("ConvNext", {}),
        ("ConvNext", {"size": {"shortest_edge": 96}}),
        ("Beit", {}),
        ("PoolFormer", {}),
    ],
)
def test_images_are_what_transformers_makes_of_them(
    tmp_path: Path, name: str, settings: Any
) -> None:
    available("transformers")
    import transformers

    kind: Any = getattr(transformers, f"{name}ImageProcessorPil", None)
    if kind is None:
        pytest.skip(f"transformers has no {name}ImageProcessorPil")
    processor = kind(**settings)
    processor.save_pretrained(tmp_path)
    prepare = preparation(tmp_path, None, None, None)
    for size in ((500, 400), (120, 313)):
        image = gradient(*size)
        [expected] = processor(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(prepare(image), torch.as_tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["Donut", "EfficientNet", "Levit", "Owlv2", "BridgeTower"])
def test_what_transformers_does_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    available("transformers")
    import transformers

    kind: Any = getattr(transformers, f"{name}ImageProcessorPil", None)
    if kind is None:
        pytest.skip(f"transformers has no {name}ImageProcessorPil")
    kind().save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"asks for .*, which is not done here; give size"):
        preparation(tmp_path, None, None, None)


def test_what_is_given_counts_more(tmp_path: Path) -> None:
    found = said(tmp_path, "config.json", TIMM, size=(32, 32), std=(2.0,) * 3)
    assert found == Preparation((32, 32), (0.1, 0.2, 0.3), (2.0,) * 3, 0.9, False, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("other.json", "{}", "images: give size, mean, std: there is no preprocessor_config.json"),
        ("config.json", {"model_type": "vit"}, "images: give size, mean, std: there is no"),
        ("preprocessor_config.json", {"size": 3}, "images: give mean, std: what is in .* does not"),
        ("preprocessor_config.json", "{", "json: does not say how images are prepared"),
        ("preprocessor_config.json", {"size": {"edge": 3}}, "does not say how images .*'height'"),
        (
            "preprocessor_config.json",
            {"do_resize": False},
            "asks for images of any size, which .*; give size, ",
        ),
        ("config.json", {"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode 'border' is not"),
        (
            "preprocessor_config.json",
            {**HUGGING_FACE, "crop_size": 300},
            r"json: cuts \(300, 300\) out of images of \(256, 256\); give size",
        ),
    ],
)
def test_folders_that_do_not_say_it(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        said(tmp_path, name, content)


def test_images_that_cannot_be_opened(tmp_path: Path) -> None:
    root = folder(tmp_path / "images", 3)
    whole = (root / "cat" / "01.png").read_bytes()
    bad = root / "cat" / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(DataError, match=re.escape(f"{bad}: cannot be opened as an image: ")):
        Images(root, **PLAIN).check()
    bad.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=re.escape(f"{bad}: cannot be opened as an image: ")):
        list(Images(root, **PLAIN))


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: expected a folder with images"):
        Images(tmp_path / "none", **PLAIN)
    with pytest.raises(DataError, match=r"there is no image in it \(\.jpg, "):
        Images(tmp_path, **PLAIN)


def test_fewer_than_asked_for_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path / "images", 5)
    with caplog.at_level(logging.WARNING, "ccamerge"):
        assert len(numbers(Images(root, **PLAIN))) == 5
        assert caplog.messages == []
        assert len(numbers(Images(root, **PLAIN, count=9))) == 5
    assert caplog.messages == [f"9 images of {root} were asked for, but there are 5: all are used"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"size": [1, 2, 3]}, ValueError, "size must be one number, or height and width, got 3"),
        ({"size": [8, 0]}, ValueError, r"size\[1\] must be a whole number of 1 or more, got 0"),
        ({"mean": [0, 0]}, ValueError, r"mean must hold 1 number \(grey\) or 3"),
        ({"std": [1, 0, 1]}, ValueError, "std must be positive"),
        ({"std": [1]}, ValueError, "mean and std must have one number for each channel, got 3 and"),
        ({"mean": "imagenet"}, TypeError, "mean must be a list of numbers"),
    ],
)
def test_settings_are_checked(
    tmp_path: Path, settings: Any, error: type[Exception], message: str
) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(error, match=message):
        Images(tmp_path, **{**PLAIN, **settings})


def test_the_fingerprint_has_how_images_are_prepared(tmp_path: Path) -> None:
    root = folder(tmp_path / "images", 3)
    said(tmp_path / "model", "config.json", TIMM)
    usual = Images(root, processor=tmp_path / "model").fingerprint
    assert usual["share"] == 0.9
    assert usual == Images(root, processor=tmp_path / "model", seed=0).fingerprint
    assert usual != Images(root, processor=tmp_path / "model", size=9).fingerprint
    picture(root / "more.png")
    assert usual != Images(root, processor=tmp_path / "model").fingerprint
