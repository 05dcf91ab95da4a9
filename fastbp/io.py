"""Networks in files: safetensors, with the description as JSON in the metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from .mlp import MLP

FORMAT = "fastbp-1"


def _tensors(net: MLP) -> dict[str, np.ndarray]:
    """The network's arrays by their names in the file."""
    tensors = {f"layers.{k}.weight": W for k, W in enumerate(net.weights)}
    tensors |= {f"layers.{k}.bias": b for k, b in enumerate(net.biases)}
    if net.feature_mean is not None and net.feature_scale is not None:
        tensors |= {"feature_mean": net.feature_mean, "feature_scale": net.feature_scale}
    return tensors


def save(net: MLP, path: str | os.PathLike) -> None:
    """Write a network; see `MLP.save`."""
    path = Path(path)
    description = {
        "layer_sizes": net.layer_sizes,
        "activation": net.activations,
        "loss": net.loss,
        "dropout": net.dropout,
        "bias": net.bias,
        "dtype": net.dtype.name,
        "random_state": net.random_state,
        "epochs": net.epochs,
    }
    metadata = {"format": FORMAT, "network": json.dumps(description), "user": json.dumps(net.metadata)}
    # Written beside and moved, so that a crash cannot leave half a file.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(_tensors(net), partial, metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> MLP:
    """Read a network that `MLP.save` wrote.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    MLP
        With the same parameters, bit for bit, and the same predictions.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it does not hold a network of this format.
    """
    from .mlp import MLP

    path = Path(path)
    with open(path, "rb"):  # for the usual errors of a file that is not there or not readable
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} does not hold a fastbp network: its metadata says format {metadata.get('format')!r}, "
            f"not {FORMAT!r}"
        )
    try:
        description: dict[str, Any] = json.loads(metadata["network"])
        epochs = description.pop("epochs")
        net = MLP(**description)
        net.metadata = json.loads(metadata["user"])
        if "feature_mean" in tensors:
            net.feature_mean, net.feature_scale = (np.empty(net.layer_sizes[0]) for _ in range(2))
        expected = _tensors(net)
        found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        if found != {name: (tensor.shape, tensor.dtype) for name, tensor in expected.items()}:
            raise ValueError("its tensors do not fit its description")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} holds a damaged fastbp network: {error}") from error
    for name, target in expected.items():
        target[...] = tensors[name]
    net.epochs = epochs
    return net
