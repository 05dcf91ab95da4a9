"""Files: safetensors, with a description as JSON in the metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

#: The one key of the metadata: several would be written in no fixed order.
KEY = "fastbp-1"


def write(path: str | os.PathLike, description: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Write a file whole or not at all, even in a crash: beside its place first, then moved."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, {KEY: json.dumps(description)})
        os.replace(partial, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the tensors of a file.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a whole file of this format.
    """
    with open(path, "rb"):  # for the usual errors of a file that is not there or not readable
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, AttributeError) as error:  # the last two of types that NumPy lacks
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    try:
        description = json.loads(metadata[KEY])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} does not hold a fastbp network: its metadata lacks a {KEY!r} in JSON") from error
    if not isinstance(description, dict):
        raise ValueError(f"{path} holds a damaged fastbp network: its description is no JSON object")
    return description, tensors
