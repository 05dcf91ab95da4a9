"""How the products of a network are cut into tiles and slices, by its shape and the GPU's number of multiprocessors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..problem import DENSE, Layer
from . import compat
from .compat import n_blocks
from .gemm import FUSED_TILES, TILES, Tile
from .tensor import TENSOR_TILES, TensorTile

#: A slice of a batch has at least so many of a product's slices in depth.
SLICE_STEPS = 4
#: Numbers that gradients by slices may take.
GRADIENT_SIZE = 1 << 27
#: Blocks that keep a multiprocessor busy.
BLOCKS = 2
#: The widest layer of a step that is fused, and how many slices of a product a launch takes as long as.
FUSED_WIDTH, LAUNCH_STEPS = 128, 4


class Plan(NamedTuple):
    """What is launched for a chunk of rows.

    Attributes
    ----------
    forward_tiles, delta_tiles : list of Tile or TensorTile
        By layer; those of layers that are not dense mean nothing.
    gradient_tile : Tile or TensorTile
    fused_tile : Tile or TensorTile or None
        That of the fused step; None if the step is not fused.
    tiles : int64 (n_tiles, 3)
        Layer, first row and first column of each tile of the gradient.
    n_slices : int
        Slices of the batch whose gradients are kept apart.
    """

    forward_tiles: list
    delta_tiles: list
    gradient_tile: Tile | TensorTile
    fused_tile: Tile | TensorTile | None
    tiles: np.ndarray
    n_slices: int


def make_plan(
    layers: list[Layer], n_parameters: int, rows: int, dtype: np.dtype, precision: str | None, fused: bool | None
) -> Plan:
    """``fused`` None leaves it to a cost model; only narrow networks of dense layers are fused at all."""
    large, small = TENSOR_TILES[precision] if precision else TILES[dtype.itemsize]
    most_slices = max(1, GRADIENT_SIZE // n_parameters)

    def tile(n_rows: int, n_columns: int, repeated: int = 1) -> Tile | TensorTile:
        blocks = n_blocks(n_rows, large.rows) * n_blocks(n_columns, large.columns)
        return large if blocks * repeated >= compat.n_multiprocessors() else small

    biggest = max((layer for layer in layers if layer.kind == DENSE), key=lambda layer: layer.n_in * layer.n_out)
    gradient_tile = tile(biggest.n_in + 1, biggest.n_out, n_blocks(rows, SLICE_STEPS * small.depth))
    tiles = _tile_table(layers, gradient_tile)
    n_slices = min(
        n_blocks(rows, SLICE_STEPS * gradient_tile.depth),
        n_blocks(BLOCKS * compat.n_multiprocessors(), len(tiles)),
        most_slices,
    )
    plan = Plan(
        [tile(rows, layer.n_out) for layer in layers],
        [tile(rows, layer.n_in) for layer in layers],
        gradient_tile,
        None,
        tiles,
        n_slices,
    )
    widest = max(max(layer.n_in, layer.n_out) for layer in layers)
    if fused is False or widest > FUSED_WIDTH or any(layer.kind != DENSE for layer in layers):
        return plan
    large, small = TENSOR_TILES[precision] if precision else FUSED_TILES[dtype.itemsize]
    fused_tile = large if n_blocks(rows, large.rows) >= compat.n_multiprocessors() else small
    of_fused = plan._replace(
        fused_tile=fused_tile,
        tiles=_tile_table(layers, fused_tile),
        n_slices=min(n_blocks(rows, fused_tile.rows), BLOCKS * compat.n_multiprocessors(), most_slices),
    )
    return of_fused if fused or _fused_wins(layers, rows, of_fused, n_slices) else plan


def _tile_table(layers: list[Layer], tile: Tile | TensorTile) -> np.ndarray:
    return np.array(
        [
            (depth, row, column)
            for depth, layer in enumerate(layers)
            if layer.kind == DENSE
            for row in range(0, layer.n_in + 1, tile.rows)
            for column in range(0, layer.n_out, tile.columns)
        ]
    )


def _fused_wins(layers: list[Layer], rows: int, plan: Plan, n_slices: int) -> bool:
    """Compare how many slices of products stand one after the other, and launches, each of which counts as some.

    ``n_slices`` is what the step would have that is not fused.
    """
    tile = plan.fused_tile
    assert tile is not None

    def steps(depth: int) -> int:
        return n_blocks(depth, tile.depth)

    sizes = [(layer.n_in, layer.n_out) for layer in layers]
    products = [(n_out, n_in) for n_in, n_out in sizes] + sizes[1:]  # forward, and back but for the first layer
    in_a_row = sum(n_blocks(width, tile.columns) * steps(depth) for width, depth in products)
    of_block = n_blocks(rows, plan.n_slices)
    fused = n_blocks(of_block, tile.rows) * in_a_row + len(plan.tiles) * steps(of_block)
    waves = n_blocks(rows, tile.rows * BLOCKS * compat.n_multiprocessors())
    launched = waves * sum(steps(depth) for _, depth in products) + steps(n_blocks(rows, n_slices))
    return fused < launched + 2 * len(layers) * LAUNCH_STEPS
