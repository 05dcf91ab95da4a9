"""The instructions that numba-cuda has no name for: loads and stores, also of 128 bits, and products by tensor cores.

Each has a body in plain Python for the simulator.

A tensor core's operands are words of 32 bits, which pass as float32: a number rounded to tf32, or two that follow each
other in depth, rounded to bf16, the first one in the lower half. A warp computes A @ B + C of fragments A (ROWS,
WORDS), B (WORDS, COLUMNS) and C (ROWS, COLUMNS). Each lane holds 4 words of A, 2 of B and 4 numbers of C, whichever the
words are: those that the functions below say.
"""

from numba import float32

from .compat import SIMULATED, cuda

#: Bytes that every load and store of four is aligned to.
ALIGNMENT = 16
WARP = 32
ROWS, COLUMNS, WORDS = 16, 8, 8


def place_a(lane, r):
    """Row and word of A that a lane holds as number ``r``."""
    return lane // 4 + r % 2 * 8, lane % 4 + r // 2 * 4


def place_b(lane, r):
    """Word and column of B that a lane holds as number ``r``."""
    return lane % 4 + r * 4, lane // 4


def place_c(lane, r):
    """Row and column of C that a lane holds as number ``r``."""
    return lane // 4 + r // 2 * 8, lane % 4 * 2 + r % 2


if SIMULATED:
    import numpy as np

    #: Of a block.
    MOST_WARPS = 8

    def load(array, i):
        return array[i]

    def store(array, i, value):
        array[i] = value

    def load4(array, start):
        return array[start], array[start + 1], array[start + 2], array[start + 3]

    def store4(array, start, values):
        for k in range(4):
            array[start + k] = values[k]

    def to_tf32(x):
        return ((np.float32(x).view(np.uint32) + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)

    def to_bf16x2(low, high):
        bits = np.array([low, high], np.float32).view(np.uint32)
        bits = bits + (bits >> 16 & 1) + 0x7FFF >> 16
        return (bits[0] | bits[1] << 16).view(np.float32)

    def _numbers_of_bf16(words):
        bits = words.view(np.uint32)
        return np.concatenate([bits << 16, bits & np.uint32(0xFFFF0000)]).view(np.float32)

    def _mma(a, b, c, numbers):
        """The lanes lay out their words in shared memory, and each computes its own sums of what ``numbers`` says of
        them. All threads of the block must come here together, not only a warp's.
        """
        left = cuda.shared.array((MOST_WARPS, ROWS, WORDS), float32)
        right = cuda.shared.array((MOST_WARPS, WORDS, COLUMNS), float32)
        warp, lane = divmod(cuda.threadIdx.x, WARP)
        for r in range(4):
            left[warp][place_a(lane, r)] = a[r]
        for r in range(2):
            right[warp][place_b(lane, r)] = b[r]
        cuda.syncthreads()
        sums = list(c)
        for r in range(4):
            row, column = place_c(lane, r)
            sums[r] += numbers(left[warp, row]) @ numbers(right[warp, :, column])
        cuda.syncthreads()
        return tuple(sums)

    def mma_tf32(a, b, c):
        return _mma(a, b, c, lambda words: words)

    def mma_bf16(a, b, c):
        return _mma(a, b, c, _numbers_of_bf16)

else:
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.cuda.extending import intrinsic

    def _address(context, builder, array_type, array, i):
        return builder.gep(cgutils.create_struct_proxy(array_type)(context, builder, value=array).data, [i])

    @intrinsic
    def load(typingctx, array, i):
        """A number of a 1-D array, without what ``array[i]`` does about negative ones. Precondition: it is inside."""

        def codegen(context, builder, signature, args):
            return builder.load(_address(context, builder, signature.args[0], *args))

        return array.dtype(array, types.int64), codegen

    @intrinsic
    def store(typingctx, array, i, value):
        """Write a number. Precondition as for `load`."""

        def codegen(context, builder, signature, args):
            array, i, value = args
            builder.store(value, _address(context, builder, signature.args[0], array, i))
            return context.get_dummy_value()

        return types.void(array, types.int64, array.dtype), codegen

    def _vector_at(context, builder, array_type, array, start):
        number = context.get_value_type(array_type.dtype)
        return builder.bitcast(
            _address(context, builder, array_type, array, start), ir.VectorType(number, 4).as_pointer()
        )

    @intrinsic
    def load4(typingctx, array, start):
        """Four numbers of a 1-D array, as a tuple. Precondition: they are inside, and aligned to 16 bytes."""

        def codegen(context, builder, signature, args):
            vector = builder.load(_vector_at(context, builder, signature.args[0], *args), align=ALIGNMENT)
            lanes = [builder.extract_element(vector, ir.Constant(ir.IntType(32), k)) for k in range(4)]
            return context.make_tuple(builder, signature.return_type, lanes)

        return types.UniTuple(array.dtype, 4)(array, types.int64), codegen

    @intrinsic
    def store4(typingctx, array, start, values):
        """Write a tuple of four. Preconditions as for `load4`."""

        def codegen(context, builder, signature, args):
            array, start, values = args
            vector = ir.Constant(ir.VectorType(context.get_value_type(signature.args[0].dtype), 4), ir.Undefined)
            for k in range(4):
                lane = builder.extract_value(values, k)
                vector = builder.insert_element(vector, lane, ir.Constant(ir.IntType(32), k))
            builder.store(vector, _vector_at(context, builder, signature.args[0], array, start), align=ALIGNMENT)
            return context.get_dummy_value()

        return types.void(array, types.int64, values), codegen

    #: What the assembler takes a register for.
    NUMBER, WORD = ir.FloatType(), ir.IntType(32)

    def _instruction(builder, text, result, constraints, operands):
        """Inline assembly that reads and writes nothing but registers; lanes that run it together stay together."""
        kind = ir.FunctionType(result, [operand.type for operand in operands])
        code = ir.InlineAsm(kind, text, constraints, side_effect=False)
        return builder.call(code, operands, attrs=("convergent", "nounwind", "readnone"))

    def _word(builder, text, numbers):
        word = _instruction(builder, text, WORD, ",".join(["=r"] + len(numbers) * ["f"]), numbers)
        return builder.bitcast(word, NUMBER)

    @intrinsic
    def to_tf32(typingctx, x):
        """A number as a word of tf32: the nearest one, of two the one further from zero."""

        def codegen(context, builder, signature, args):
            return _word(builder, "cvt.rna.tf32.f32 $0, $1;", args)

        return types.float32(types.float32), codegen

    @intrinsic
    def to_bf16x2(typingctx, low, high):
        """Two numbers as a word of bf16: the nearest ones, of two the even one."""

        def codegen(context, builder, signature, args):
            return _word(builder, "cvt.rn.bf16x2.f32 $0, $2, $1;", args)

        return types.float32(types.float32, types.float32), codegen

    def _make_mma(shape):
        text = f"mma.sync.aligned.{shape} {{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, {{$10,$11,$12,$13}};"
        constraints = ",".join(4 * ["=f"] + 6 * ["r"] + 4 * ["f"])

        @intrinsic
        def mma(typingctx, a, b, c):
            """A @ B + C, of which a lane has 4 words of A, 2 of B and 4 numbers of C. Precondition: all lanes of the
            warp take part.
            """

            def codegen(context, builder, signature, args):
                a, b, c = (cgutils.unpack_tuple(builder, part) for part in args)
                words = [builder.bitcast(word, WORD) for word in (*a, *b)]
                result = ir.LiteralStructType(4 * [NUMBER])
                d = _instruction(builder, text, result, constraints, [*words, *c])
                return context.make_tuple(builder, signature.return_type, cgutils.unpack_tuple(builder, d))

            return types.UniTuple(types.float32, 4)(a, b, c), codegen

        return mma

    mma_tf32 = _make_mma("m16n8k8.row.col.f32.tf32.tf32.f32")
    mma_bf16 = _make_mma("m16n8k16.row.col.f32.bf16.bf16.f32")
