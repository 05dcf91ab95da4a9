"""Both phases of a step but for the update in one launch, for networks of narrow dense layers.

A block takes its share of the rows forward through all layers, to their loss, and back, tile by tile, and sums their
gradient into a slice of its own: what the tiles of one layer leave in memory is read by the same block for the next, so
that a barrier among its threads is all that stands between the layers.
"""

from .compat import cuda, kernel, numba_type
from .delta import make_delta_tile, make_output_row
from .forward import LANES, make_forward_tile
from .gemm import Tile
from .gradient import make_gradient_tile
from .layers import over_block
from .layout import N_IN, N_OUT, STEP
from .ptx import ALIGNMENT
from .tensor import TensorTile


def make_fused_step(dtype, tile: Tile | TensorTile, finish, loss_of, name: str | None):
    """A block for each slice of the rows."""
    real, zero = numba_type(dtype), dtype.type(0)
    n_sums, n_shared, threads = tile.n_sums, tile.shared, tile.threads
    forward_tile, delta_tile = make_forward_tile(dtype, tile, finish), make_delta_tile(dtype, tile)
    output_row, gradient_tile = make_output_row(dtype, loss_of), make_gradient_tile(dtype, tile)

    @kernel(threads, name)
    def fused_step(network, memory, samples, chunk, tiles, loss, reports):
        scratch = cuda.shared.array(n_shared, real, ALIGNMENT), cuda.local.array(n_sums, real)
        shared, _ = scratch
        thread, block, n_slices = cuda.threadIdx.x, cuda.blockIdx.x, cuda.gridDim.x
        span = chunk.n_rows * block // n_slices, chunk.n_rows * (block + 1) // n_slices
        number, last, own = chunk.cursor[STEP] + chunk.step, len(network.layers) - 1, zero
        weight = reports.weights[number]
        for row in range(span[0], span[1], tile.rows):
            end_row = min(row + tile.rows, span[1])
            for depth in range(last + 1):
                for column in range(0, network.layers[depth, N_OUT], tile.columns):
                    corner = row, end_row, column
                    forward_tile(network, memory, samples, chunk, depth, 1, 1, corner, scratch)
                cuda.syncthreads()
            for first in range(row, end_row, threads // LANES):
                own_row = first + thread // LANES
                own += output_row(network, memory, samples, chunk, loss, weight, own_row, end_row, shared)
            cuda.syncthreads()
            for depth in range(last, 0, -1):
                for column in range(0, network.layers[depth, N_IN], tile.columns):
                    delta_tile(network, memory, samples.order, depth, (row, end_row, column), scratch)
                cuda.syncthreads()
        for i in range(len(tiles)):
            gradient_tile(network, memory, samples, chunk, tiles[i], span, block, 1, scratch)
        own = over_block(shared, thread, own)
        if thread == 0:
            reports.losses[number, block] = own

    return fused_step
