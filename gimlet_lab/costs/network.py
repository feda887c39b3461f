"""A small network, evaluated: tanh layers and one linear number at the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Rows at once: the layers of so many fit in a core's cache.
BATCH = 16384


def forward(features: Array, mean: Array, scale: Array, layers: Sequence[tuple[Array, Array]]) -> Array:
    """The network's answer for each row of features.

    Examples
    --------
    >>> identity = [(np.array([[2.0]]), np.array([1.0]))]
    >>> forward(np.array([[3.0], [5.0]]), np.array([3.0]), np.array([2.0]), identity)
    array([1., 3.])
    """
    out = np.empty(len(features))
    # Single precision is a thousand times finer than the fit, and twice as fast.
    single = [(weight.astype(np.float32), bias.astype(np.float32)) for weight, bias in layers]
    for start in range(0, len(features), BATCH):
        x = ((features[start : start + BATCH] - mean) / scale).astype(np.float32)
        for weight, bias in single[:-1]:
            x = np.tanh(x @ weight.T + bias)
        weight, bias = single[-1]
        out[start : start + BATCH] = (x @ weight.T + bias)[:, 0]
    return out
