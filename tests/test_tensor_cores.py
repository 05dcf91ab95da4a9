"""Tensor cores: what each lane holds, and products in numba-cuda's simulator."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
from background import Program

if importlib.util.find_spec("numba_cuda") is None:
    pytest.skip("numba-cuda is not installed", allow_module_level=True)

from numba import float32

from fastbp.kernels.cuda import compat, ptx
from fastbp.kernels.cuda.tensor import PAD, PRECISIONS, TENSOR_TILES, TensorTile

# Of a lane, as the PTX ISA says: group and thread in it; then row and column of number i in A and B, by precision.
GROUP, THREAD = np.divmod(np.arange(ptx.WARP)[:, None], 4)
LAYOUTS = {
    "tf32": (
        lambda i: (GROUP + 8 * (i % 2 == 1), THREAD + 4 * (i >= 2)),
        lambda i: (THREAD + 4 * i, GROUP + 0 * i),
    ),
    "bf16": (
        lambda i: (GROUP + 8 * (i // 2 % 2 == 1), THREAD * 2 + i % 2 + 8 * (i >= 4)),
        lambda i: (THREAD * 2 + i % 2 + 8 * (i >= 2), GROUP + 0 * i),
    ),
}
# Digits that are kept, and how: of two nearest numbers, the one further from zero, or the even one.
ROUNDING = {"tf32": (11, lambda m: np.copysign(np.floor(np.abs(m) + 0.5), m)), "bf16": (8, np.rint)}
TOLERANCE = {"tf32": 1e-3, "bf16": 1e-2}
# Left and right operand along the tile: forward pass, delta, gradient.
ORIENTATIONS = ((False, True), (False, False), (True, True))
TILES = TENSOR_TILES["tf32"]  # of the same shapes for both
PROGRAMS = [Program(__file__, json.dumps(TENSOR_TILES["bf16"]), NUMBA_ENABLE_CUDASIM="1")]
NAMES = [f"{tile.rows}x{tile.columns}" for tile in TILES]


def emulate_mma(a, b, precision):
    """What the instruction gives each lane for its numbers of A (32, .) and B (32, .), and zeros for C."""
    place_a, place_b = LAYOUTS[precision]
    depth = b.shape[1] * 4
    A, B = np.full((16, depth), np.nan), np.full((depth, 8), np.nan)
    A[place_a(np.arange(a.shape[1]))] = a
    B[place_b(np.arange(b.shape[1]))] = b
    i = np.arange(4)
    return (A @ B)[GROUP + 8 * (i >= 2), THREAD * 2 + i % 2]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_fragments_hold_every_number_once(precision, rng):
    numbers = PRECISIONS[precision].numbers
    lanes = range(ptx.WARP)
    A = rng.standard_normal((ptx.ROWS, ptx.WORDS, numbers))
    B = rng.standard_normal((ptx.WORDS, numbers, ptx.COLUMNS))
    a = np.array([[A[ptx.place_a(lane, r)] for r in range(4)] for lane in lanes])
    b = np.array([[B[word, :, column] for word, column in (ptx.place_b(lane, r) for r in range(2))] for lane in lanes])
    assert sorted(a.ravel()) == sorted(A.ravel())
    assert sorted(b.ravel()) == sorted(B.ravel())
    c = emulate_mma(a.reshape(ptx.WARP, -1), b.reshape(ptx.WARP, -1), precision)
    C = np.full((ptx.ROWS, ptx.COLUMNS), np.nan)
    for lane in lanes:
        for r in range(4):
            C[ptx.place_c(lane, r)] = c[lane, r]
    np.testing.assert_allclose(C, A.reshape(ptx.ROWS, -1) @ B.reshape(-1, ptx.COLUMNS))


@pytest.mark.parametrize("tile", TILES, ids=NAMES)
def test_no_two_lanes_read_from_one_bank(tile):
    in_a, in_b = ([place(lane, 0) for lane in range(ptx.WARP)] for place in (ptx.place_a, ptx.place_b))
    assert len({(word * (tile.rows + PAD) + row) % 32 for row, word in in_a}) == ptx.WARP
    assert len({(word * (tile.columns + PAD) + column) % 32 for word, column in in_b}) == ptx.WARP


def make_kernel(tile, left_along, right_along):
    """out = left @ right; samples are in ``left`` by ``order``, and its last row is ones if it lies along the tile."""
    product = tile.product(np.dtype(np.float32), left_along, right_along, left_along)
    accumulate, part, place = product.accumulate, product.part, product.place
    n_parts, part_size, threads = product.n_parts, product.part_size, tile.threads
    n_shared, n_sums = tile.shared, tile.n_sums
    cuda = compat.cuda

    @compat.kernel(threads, None)
    def multiply(
        out, left, left_stride, left_bound, right, right_stride, right_bound, order, rows, columns, begin, end
    ):
        thread = cuda.threadIdx.x
        shared = cuda.shared.array(n_shared, float32, ptx.ALIGNMENT)
        sums = cuda.local.array(n_sums, float32)
        first_row, first_column = cuda.blockIdx.y * tile.rows, cuda.blockIdx.x * tile.columns
        left_operand = left, 0, left_stride, first_row, left_bound, order, 1, 2, rows - 1
        right_operand = right, 0, right_stride, first_column, right_bound, order, 0, 0, -1
        accumulate(sums, shared, left_operand, right_operand, begin, end, thread)
        for k in range(n_parts):
            part(sums, shared, k, thread)
            for i in range(thread, part_size, threads):
                row, column = place(k, i)
                row += first_row
                column += first_column
                if row < rows and column < columns:
                    out[row * columns + column] = shared[i]

    return multiply


def test_products_in_the_simulator():
    results = [json.loads(line) for line in PROGRAMS[0].output().splitlines()]
    assert len(results) == len(ORIENTATIONS) * len(PRECISIONS) + len(TILES)
    for precision, of_rounded, of_exact in results:
        assert of_rounded < 1e-6
        assert of_exact < TOLERANCE[precision]


def simulate(rng, tile, left_along, right_along, rows, columns):
    """Print how far a product is from that of the rounded operands, and from the exact one."""
    begin, end = 3 if left_along else 0, 37
    left, right = rng.standard_normal((rows, end), np.float32), rng.standard_normal((end, columns), np.float32)
    if left_along:
        left[-1] = 1
    lines, left_stride = lay_out(left[:-1].T if left_along else left)
    order = rng.permutation(len(lines) + 2)
    samples = np.full((len(order), left_stride), np.nan, np.float32)
    samples[order[2:]] = lines
    flat, right_stride = lay_out(right if right_along else right.T)
    out = np.full(rows * columns, np.nan, np.float32)
    grid = -(-columns // tile.columns), -(-rows // tile.rows)
    make_kernel(tile, left_along, right_along)[grid, tile.threads](
        out,
        samples.ravel(),
        left_stride,
        left_stride if left_along else rows,
        flat.ravel(),
        right_stride,
        right_stride if right_along else columns,
        order,
        rows,
        columns,
        begin,
        end,
    )
    precision = tile.precision
    out, left, right = out.reshape(rows, columns), left[:, begin:end], right[begin:end]
    of_rounded = relative_error(out, rounded(left, precision) @ rounded(right, precision))
    of_exact = relative_error(out, left.astype(float) @ right)
    print(json.dumps([precision, of_rounded, of_exact]))


def lay_out(matrix):
    """Rows padded with zeros to whole vectors, and their stride."""
    n_rows, n_columns = matrix.shape
    stride = -(-n_columns // 4) * 4
    padded = np.zeros((n_rows, stride), np.float32)
    padded[:, :n_columns] = matrix
    return padded, stride


def rounded(x, precision):
    digits, to_whole = ROUNDING[precision]
    mantissa, exponent = np.frexp(x.astype(float))
    return np.ldexp(to_whole(np.ldexp(mantissa, digits)), exponent - digits)


def relative_error(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def main():
    sys.setswitchinterval(1e-4)  # the simulator waits for its threads by asking them
    rng = np.random.default_rng(0)
    for precision in PRECISIONS:
        for orientation in ORIENTATIONS:
            simulate(rng, TENSOR_TILES[precision][0], *orientation, 21, 13)
    for tile in json.loads(sys.argv[1]):  # those that GPUs run
        tile = TensorTile(*tile)
        simulate(rng, tile, *ORIENTATIONS[0], tile.rows - 3, tile.columns - 5)


if __name__ == "__main__":
    main()
