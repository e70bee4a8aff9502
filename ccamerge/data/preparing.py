"""How images become what a network takes: resized, cut out, normalised; and where that is said."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccamerge.data.files import DataError

_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
"""Pillow's numbers of them, which preprocessor_config.json has as well."""

_STEPS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "crop_pct", "do_rescale"),
    *("rescale_factor", "do_normalize", "image_mean", "image_std"),
)
_IDLE = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb"),
    *("default_to_square", "data_format", "input_data_format", "device", "return_tensors"),
    *("disable_grouping", "return_segmentation_masks", "_processor_class", "backend"),
)
"""Keys of preprocessor_config.json: steps that are done here, and what makes no difference."""

_OWN_WAYS = ("Levit",)
"""Of transformers' image processors those that do more than their files say."""

_CUT_BELOW = 384

_ROUNDING = 1e-6
"""Sides of images are cut off to whole numbers, as elsewhere, but not 255.99999999."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What is done with each image, as preprocessors of transformers and timm do it.

    Attributes
    ----------
    size : height and width in the end
    mean, std : of each channel, of values between 0 and 1; one channel makes images grey
    share : of the resized image that is cut out of its middle, along each side
    squash : whether both sides are resized for themselves, or the shorter one fits and the longer
        one follows
    filter : Pillow's number of the one that resizes
    factor : that whole numbers, 0 to 255, are multiplied with
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    share: float = 1.0
    squash: bool = False
    filter: int = 2
    factor: float = 1 / 255

    def __call__(self, image: Any) -> Tensor:
        """Of a Pillow image (channels, height, width), float32."""
        image = image.convert("L" if len(self.mean) == 1 else "RGB")
        height, width = self.size
        tall, wide = (int(side / self.share + _ROUNDING) for side in self.size)
        if not self.squash:
            scale = max(tall / image.height, wide / image.width)
            tall = max(tall, int(scale * image.height + _ROUNDING))
            wide = max(wide, int(scale * image.width + _ROUNDING))
        if (wide, tall) != image.size:
            image = image.resize((wide, tall), self.filter)
        left, top = round((wide - width) / 2), round((tall - height) / 2)
        image = image.crop((left, top, left + width, top + height))
        values = torch.from_numpy(np.array(image, dtype=np.float32)).view(height, width, -1)
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return ((values * self.factor - mean) / std).permute(2, 0, 1).contiguous()


def preparation(
    folder: Path | None,
    size: tuple[int, int] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> Preparation:
    """What is given, and for the rest what a model's folder says.

    ``preprocessor_config.json`` is transformers', ``config.json`` with a ``pretrained_cfg`` timm's.

    Raises
    ------
    DataError
        If nothing says a part, or what the folder says cannot be done.
    """
    found = _said(folder) if folder is not None and None in (size, mean, std) else {}
    parts = {"size": size, "mean": mean, "std": std}
    whole = {**found, **{name: value for name, value in parts.items() if value is not None}}
    missing = [name for name in parts if name not in whole]
    if missing:
        where = f"there is no preprocessor_config.json or timm's config.json in {folder}"
        if folder is None:
            where = "there is no processor, a model's folder that says it"
        if found:
            where = f"what is in {folder} does not say it"
        message = f"images: give {', '.join(missing)}: {where}"
        raise DataError(message)
    if len(whole["mean"]) != len(whole["std"]):
        counts = f"{len(whole['mean'])} and {len(whole['std'])}"
        message = f"images: mean and std must have one number for each channel, got {counts}"
        raise DataError(message)
    return Preparation(**whole)


def _said(folder: Path) -> dict[str, Any]:
    """What files in a folder say, under the names of `Preparation`; empty if there are none."""
    for name, read in (("preprocessor_config.json", _transformers), ("config.json", _timm)):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and (found := read(content)):
                return found
        except DataError as error:
            message = f"{path}: {error}; give size, mean and std instead"
            raise DataError(message) from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            message = f"{path}: does not say how images are prepared: {error!r}"
            raise DataError(message) from error
    return {}


def _transformers(content: Mapping[str, Any]) -> dict[str, Any]:
    odd = [key for key, value in content.items() if value and key not in (*_STEPS, *_IDLE)]
    if str(content.get("image_processor_type", "")).startswith(_OWN_WAYS):
        odd.append("image_processor_type")
    if odd or not content.get("do_resize", True):
        what = ", ".join(odd) or "images of any size"
        message = f"asks for {what}, which is not done here"
        raise DataError(message)
    found: dict[str, Any] = {"factor": 1.0}
    if content.get("do_rescale", True):
        found["factor"] = float(content.get("rescale_factor", 1 / 255))
    if content.get("do_normalize", True):
        for name in ("mean", "std"):
            if f"image_{name}" in content:
                found[name] = tuple(map(float, content[f"image_{name}"]))
    else:
        found |= {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    size, cut = content.get("size"), content.get("crop_size")
    if content.get("resample") is not None:
        found["filter"] = int(content["resample"])
    if size is None:
        return found
    shortest = isinstance(size, Mapping) and "shortest_edge" in size
    resized = _sides(size)
    found |= {"size": resized, "squash": not shortest}
    if shortest and content.get("crop_pct"):  # of ConvNeXt, which cuts out of small images only
        small = resized[0] < _CUT_BELOW
        return found | ({"share": float(content["crop_pct"])} if small else {"squash": True})
    if content.get("do_center_crop", False) and cut is not None:
        found["size"] = _sides(cut)
        shares = {side / whole for side, whole in zip(found["size"], resized, strict=True)}
        if len(shares) > 1 or max(shares) > 1:
            message = f"cuts {found['size']} out of images of {resized}"
            raise DataError(message)
        found["share"] = shares.pop()
    return found


def _sides(value: Any) -> tuple[int, int]:
    """Height and width of what transformers calls a size."""
    if isinstance(value, Mapping):
        if "shortest_edge" in value:
            return int(value["shortest_edge"]), int(value["shortest_edge"])
        return int(value["height"]), int(value["width"])
    return int(value), int(value)


def _timm(content: Mapping[str, Any]) -> dict[str, Any]:
    own = content.get("pretrained_cfg")
    if not isinstance(own, Mapping):
        return {}
    mode = own.get("crop_mode", "center")
    if mode not in ("center", "squash"):
        message = f"crop_mode {mode!r} is not known"
        raise DataError(message)
    _, height, width = own["input_size"]
    share = float(own.get("crop_pct", 0.875))
    if not (math.isfinite(share) and 0 < share <= 1):
        message = f"crop_pct {share} is not above 0 and at most 1"
        raise DataError(message)
    return {
        "size": (int(height), int(width)),
        "mean": tuple(map(float, own["mean"])),
        "std": tuple(map(float, own["std"])),
        "share": share,
        "squash": mode == "squash",
        "filter": _FILTERS[own.get("interpolation", "bicubic")],
    }
