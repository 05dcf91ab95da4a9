"""Both phases of a step but for the update in one launch, for networks of narrow dense layers.

A block takes its share of the rows forward through all layers, to their loss, and back, tile by tile, and sums their
gradient into a slice of its own: what the tiles of one layer leave in memory is read by the same block for the next, so
that a barrier among its threads is all that stands between the layers.
"""

from .compat import cuda, kernel, numba_type
from .delta import make_delta_tile, make_output_row
from .forward import LANES, POSITION, STEP, make_forward_tile, update_key
from .gemm import Tile
from .gradient import COLUMN, LAYER, ROW, make_gradient_tile
from .layers import over_block
from .layout import N_IN, N_OUT
from .tensor import TensorTile


def make_fused_step(dtype, tile: Tile | TensorTile, finish, loss_of, name: str | None):
    """A block for each slice of the rows."""
    real, zero = numba_type(dtype), dtype.type(0)
    n_sums, n_shared, threads = tile.n_sums, tile.shared, tile.threads
    forward_tile, delta_tile = make_forward_tile(dtype, tile, finish), make_delta_tile(dtype, tile)
    output_row, gradient_tile = make_output_row(dtype, loss_of), make_gradient_tile(dtype, tile)

    @kernel(threads, name)
    def fused_step(
        network,
        memory,
        samples,
        cursor,
        step,
        update_rows,
        first,
        n_rows,
        tiles,
        loss,
        setting,
        options,
        weights,
        losses,
        part,
    ):
        shared = cuda.shared.array(n_shared, real)
        sums = cuda.local.array(n_sums, real)
        thread, block, n_blocks = cuda.threadIdx.x, cuda.blockIdx.x, cuda.gridDim.x
        since, until = n_rows * block // n_blocks, n_rows * (block + 1) // n_blocks
        start, number = cursor[POSITION] + step * update_rows, cursor[STEP] + step
        key, last = update_key(cursor, start), len(network.layers) - 1
        own = zero
        for first_row in range(since, until, tile.rows):
            end_row = min(first_row + tile.rows, until)
            for depth in range(last + 1):
                for column in range(0, network.layers[depth, N_OUT], tile.columns):
                    rows = first, first_row, end_row
                    forward_tile(network, memory, samples, start, key, rows, column, depth, depth == 0, 1, shared, sums)
                cuda.syncthreads()
            for begin in range(first_row, end_row, threads // LANES):
                row = begin + thread // LANES
                own += output_row(
                    network,
                    memory,
                    samples,
                    start + first + row,
                    row,
                    row < end_row,
                    last,
                    loss,
                    setting,
                    options,
                    weights[number],
                    shared,
                    thread,
                )
            cuda.syncthreads()
            for depth in range(last, 0, -1):
                for column in range(0, network.layers[depth, N_IN], tile.columns):
                    delta_tile(network, memory, samples.order, first_row, end_row, column, depth, shared, sums)
                cuda.syncthreads()
        for i in range(len(tiles)):
            gradient_tile(
                network,
                memory,
                samples,
                start,
                first,
                since,
                until,
                tiles[i, LAYER],
                tiles[i, ROW],
                tiles[i, COLUMN],
                block * memory.theta.size,
                1,
                shared,
                sums,
            )
        own = over_block(shared, thread, own)
        if thread == 0:
            losses[number, part + block] = own

    return fused_step
