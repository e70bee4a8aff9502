"""Ways to align the models' features: one small file each.

A method turns moments and weights of the spaces into feature maps and knows nothing of
architectures. To add one, write a file with a function decorated by `register` and import it here.
"""

from ccamerge.config.settings import Mode
from ccamerge.methods import average, canonical, ot, permutation, procrustes, weight_matching, zipit
from ccamerge.methods.base import (
    METHODS,
    Alignment,
    AlignmentProblem,
    Method,
    Solution,
    Solutions,
    register,
)

__all__ = [
    "METHODS",
    "Alignment",
    "AlignmentProblem",
    "Method",
    "Mode",
    "Solution",
    "Solutions",
    "average",
    "canonical",
    "ot",
    "permutation",
    "procrustes",
    "register",
    "weight_matching",
    "zipit",
]
