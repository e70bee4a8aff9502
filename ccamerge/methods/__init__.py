"""Ways to align the features of a model with the reference's: one small file each.

A method turns the moments of the spaces into feature maps and knows nothing of architectures.
To add one, write a file with a function decorated by `register` and import it here.
"""

from ccamerge.methods import average, cca, permutation, procrustes
from ccamerge.methods.base import METHODS, AlignmentProblem, Method, Solution, register

__all__ = [
    "METHODS",
    "AlignmentProblem",
    "Method",
    "Solution",
    "average",
    "cca",
    "permutation",
    "procrustes",
    "register",
]
