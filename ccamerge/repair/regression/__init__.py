"""Regression repair: fit each linear operation of the merged network to what the models compute.

Take a linear operation that reads ``x`` in the merged network, and the value ``s = W x + b + c``
that its output becomes when something already computed, ``c``, is added to it, as in a residual
block. Each model has its own ``s_i`` there. The weights first become the minimiser of
``E |s - s^|^2 + lambda |W - W_merged|^2``, where ``s^`` is the weighted mean of the ``s_i`` mapped
to the reference's features: a ridge regression, whose second moments are streamed by the same
kernels as all others. So a residual branch also mends what its shortcut got wrong.

If an element-wise function ``f`` follows, it is ``E |f(s) - f^|^2`` that matters, ``f^`` being the
mean of the mapped ``f(s_i)``: that is what the next operation reads, and what the maps were made
for. Some rounds of a damped Gauss-Newton method bring it down; each is a regression with the same
matrix, which has been factored already, and Anderson's mixing makes the most of them.

What a convolution reads is never copied: moments of its patches come out of a strided view, group
by group, and the rounds need convolutions and their gradients alone.

Operations are fitted in the order of the network, each on inputs that the fits before it have
mended. No labels are involved. Related: RegMean (Jin et al., ICLR 2023), which fits each operation
to its own models' inputs; Zhang et al. (2016) and He et al. (2017), who compress networks by
reconstructing outputs through the non-linearity and across the shortcut.
"""

from ccamerge.repair.regression.fitting import DAMPING, Fitted, Sample, fit
from ccamerge.repair.regression.sites import Fit, Piece, fits_of

__all__ = ["DAMPING", "Fit", "Fitted", "Piece", "Sample", "fit", "fits_of"]
