"""Calibration data and labelled data from local files: text, images and arrays.

Each class gives batches, which `ccamerge.merge`, `collect` and `evaluate` take, as often as they
are iterated over. The same files, settings and seed give the same batches, in whatever order a
folder lists its files and wherever it lies. Nothing is fetched from a hub or the network.
"""

from ccamerge.data.arrays import Arrays
from ccamerge.data.images import Images
from ccamerge.data.texts import Texts

__all__ = ["Arrays", "Images", "Texts"]
