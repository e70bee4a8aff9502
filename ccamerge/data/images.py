"""Images from a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccamerge.config.data_files import checked
from ccamerge.core import arguments
from ccamerge.data.files import DataError, Paths, files_within
from ccamerge.data.local import LocalData, choice
from ccamerge.data.preparing import preparation

IMAGE_KINDS = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"),
)
"""How names of files end that hold an image."""

COUNT = 2000
"""What is usual: statistics of a few thousand inputs suffice."""


class Images(LocalData):
    """Batches of prepared images from a local folder, (n, channels, height, width) float32.

    Images are opened as they are needed, so that no more than a batch is in memory. They are
    prepared without augmentation: resized until the shorter side fits, cut out in the middle, and
    normalised, or as a model's folder says.

    Parameters
    ----------
    folder : with images (``.jpg``, ``.png`` and other usual ones) at any depth
    processor : folder of a model that says how its images are prepared, by transformers'
        ``preprocessor_config.json`` or timm's ``config.json``
    size, mean, std : a number, or height and width; and numbers for each channel, of values between
        0 and 1. One number each makes images grey. They count more than what ``processor`` says,
        and one or the other has to: images that are normalised wrongly give wrong statistics.
    count : images; default 2000, or as many as there are. If there are fewer than are asked for, a
        warning says how many.
    batch_size : images of a batch
    seed : of the choice, in which each image is as likely as any other
    labels : whether batches are ``(images, labels)``: the number of the folder within ``folder``,
        these in the order of their names, as torchvision's ``ImageFolder`` does it

    Raises
    ------
    DataError
        If there are no images, nothing says how to prepare them, or one cannot be opened; the
        message names it.
    ImportError
        If Pillow is not installed.
    """

    def __init__(
        self,
        folder: Paths,
        *,
        processor: Paths | None = None,
        size: int | Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        count: int | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        labels: bool = False,
    ) -> None:
        given = {"processor": processor, "size": size, "mean": mean, "std": std, "count": count}
        settings = checked("images", {**given, "batch_size": batch_size, "seed": seed})
        settings["labels"] = arguments.flag(labels, "labels")
        try:
            import PIL.Image
        except ImportError as error:
            message = f"images are read by Pillow: pip install 'ccamerge[data]' ({error})"
            raise ImportError(message) from error
        self._open = PIL.Image.open
        self._errors = (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError)
        self._folder = arguments.path(folder, "folder").expanduser()
        if not self._folder.is_dir():
            message = f"{self._folder}: expected a folder with images"
            raise DataError(message)
        found = files_within(self._folder, IMAGE_KINDS)
        if not found:
            message = f"{self._folder}: there is no image in it ({', '.join(IMAGE_KINDS)})"
            raise DataError(message)
        where = settings.pop("processor")
        self._prepare = preparation(where, *(settings[name] for name in ("size", "mean", "std")))
        super().__init__(found, {**settings, **dataclasses.asdict(self._prepare)})
        self._labels = self._classes() if labels else {}
        self._chosen: list[Path] | None = None

    def check(self, model: nn.Module | None = None) -> None:
        """Choose the images, and see that each is one; see `LocalData`."""
        for path in self._images():
            try:
                self._open(path).close()
            except self._errors as error:
                raise _unreadable(path, error) from error

    def _samples(self) -> int:
        return len(self._images())

    def _batch(self, places: range) -> Any:
        paths = self._images()[places.start : places.stop]
        images = torch.stack([self._image(path) for path in paths])
        if not self._labels:
            return images
        return images, torch.tensor([self._labels[self._class(path)] for path in paths])

    def _images(self) -> list[Path]:
        if self._chosen is None:
            count, seed = self.settings["count"], self.settings["seed"]
            places = choice(len(self.files), count, seed, f"images of {self._folder}", COUNT)
            self._chosen = [self.files[place] for place in places]
        return self._chosen

    def _image(self, path: Path) -> Tensor:
        try:
            with self._open(path) as image:
                return self._prepare(image)
        except self._errors as error:
            raise _unreadable(path, error) from error

    def _class(self, path: Path) -> str:
        return path.relative_to(self._folder).parts[0]

    def _classes(self) -> dict[str, int]:
        """The number of each folder that is a class."""
        bare = [path for path in self.files if path.parent == self._folder]
        if bare:
            message = f"{bare[0]}: has no label: expected it in a folder of its class"
            raise DataError(message)
        names = sorted({self._class(path) for path in self.files})
        return {name: number for number, name in enumerate(names)}


def _unreadable(path: Path, error: BaseException) -> DataError:
    return DataError(f"{path}: cannot be opened as an image: {error}")
