"""What Numba cannot say in Python: register tiles and atomics. The only file that emits LLVM IR."""

import os
from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, register_jitable, register_model
from numba.np.arrayobj import populate_array

#: A panel is one cache line wide on every processor: 16 float32 or 8 float64.
LINE_BYTES = 64
#: Rows of at most so many numbers are transposed as if they had no more.
QUAD = 4


class Vectors(NamedTuple):
    """The vector registers of a processor, and the tiles that fill them.

    Attributes
    ----------
    bytes : int
        Width of a register.
    fused : bool
        Whether there is a fused multiply-add; without it one would be a call of a library function.
    rows : int
        Height of the widest tile of a forward or delta product.
    columns : int
        Height of the widest tile of a gradient product; divides a panel.
    panels : int
        Panels side by side in a tile.
    units, lines, single : int
        Height and width, in lines, of the largest tile of a forward or delta product with samples in the lanes, and
        height of one that is a single line wide.
    block : tuple of int
        Height and width of a tile of such a gradient.
    """

    bytes: int
    fused: bool
    rows: int
    columns: int
    panels: int
    units: int
    lines: int
    single: int
    block: tuple[int, int]


def _probe() -> str:
    """The assembly of a fused multiply-add of 64 bytes on the processor that Numba compiles for."""
    name, features = config.CPU_NAME, config.CPU_FEATURES  # type: ignore[attr-defined]
    binding = llvmlite.binding
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name() if name is None else name,
        features=binding.get_host_cpu_features().flatten() if features is None else features,
    )
    source = """
        declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
        define void @probe(ptr %a) {
            %x = load <16 x float>, ptr %a
            %y = call <16 x float> @llvm.fma.v16f32(<16 x float> %x, <16 x float> %x, <16 x float> %x)
            store <16 x float> %y, ptr %a
            ret void
        }"""
    return machine.emit_assembly(binding.parse_assembly(source))


def _choose_vectors() -> Vectors:
    """Accumulators must cover latency x ports (8 to 10) and leave registers for operands."""
    assembly = _probe()
    if "zmm" in assembly:  # AVX-512: 24 and 16 of 32 registers
        return Vectors(bytes=64, fused=True, rows=12, columns=8, panels=2, units=4, lines=4, single=8, block=(4, 4))
    if "vfmadd" in assembly:  # AVX2: 12 and 8 of 16
        return Vectors(bytes=32, fused=True, rows=6, columns=4, panels=1, units=4, lines=1, single=4, block=(4, 2))
    if "fmla" in assembly:  # NEON: 24 and 16 of 32
        return Vectors(bytes=16, fused=True, rows=6, columns=4, panels=1, units=4, lines=1, single=4, block=(4, 4))
    # SSE: 8 and 8 of 16
    return Vectors(bytes=16, fused=False, rows=2, columns=2, panels=1, units=2, lines=1, single=2, block=(4, 2))


VECTORS = _choose_vectors()
#: Whether vectors are whole lines, which can be written past the caches: a part of one would have to wait for the rest.
STREAMS = VECTORS.bytes == LINE_BYTES


#: What a tile may do with its sums: write them, or the greater of them and zero, or what guides it times them, or those
#: for which that is positive, and zeros.
FINISHES = "store", "rectify", "multiply", "pass"
STORE, RECTIFY, MULTIPLY, PASS = range(4)


class Shape(NamedTuple):
    """Rows and panels of a tile, and whether a row of ones, which are nowhere in memory, follows those of A."""

    height: int
    panels: int
    ones: bool = False


@register_jitable
def tile_code(height, panels, ones):
    """What a tile of this shape is called by."""
    return 32 * height + 2 * panels + ones


class _Walk(NamedTuple):
    """How a tile goes through an operand: where it starts, how many neighbours it takes in each of its panels, and how
    far it is to the next row of the tile, to its next panel, to the next term of the sum and to the next run of terms,
    and from the start to the row for that of ones. Meanwhile what lies ``ahead`` of the start is fetched, so much of it
    with each term.
    """

    first: ir.Value | None
    size: int = 0
    row: int | ir.Value = 0
    panel: int | ir.Value = 0
    step: int | ir.Value = 0
    run: int | ir.Value = 0
    ones: int | ir.Value = 0
    ahead: ir.Value | None = None
    fetch: int | ir.Value = 0


def make_tile(shapes: list[Shape], along: str, finishes: tuple[str, ...]) -> Callable:
    """Make an intrinsic C = S + A B for one tile in registers, of any of the given shapes.

    An element's terms are summed in an order that depends neither on the tile it lies in nor on the thread, one
    multiply-add per term; nor does it matter whether a sum is interrupted and goes on from where it stood.

    Parameters
    ----------
    along : {"row", "column", "unit", "sample"}
        Where the sum runs. With units in the lanes, "row" runs inside a line of A, the tile's rows being successive
        lines (z = a W, delta W^T), "column" the other way round (a^T delta). With samples in the lanes, "unit" sums
        what lines of B hold, times single numbers (z = W^T a, W delta), and "sample" products of lines (a delta^T).
    finishes : tuple of str
        Which of ``FINISHES`` a tile can do; if there are several, C's tuple goes on with the code of one, and with how
        far behind C what guides it lies. Along samples it is ("sum",), the sum over the lanes.

    Returns
    -------
    intrinsic
        ``tile(code, a, b, s, c, depth, run)``. ``code`` is the `tile_code` of one of the shapes. The sum has
        ``depth >= 1`` terms, in runs of ``run``. A, B, S and C are tuples that start with an array and the place of the
        tile's first element in it; what follows says how far it is, in elements,

        - along rows, to A's next run, to B's next run and panel, to the next row and panel of S, and to C's next panel;
          a run is contiguous lines of B, as many as a panel is wide; B's tuple goes on with how far it is to what will
          be wanted next, and how much of that to fetch into L2 with each term;
        - along columns, to A's next row, term and run, to B's next run and panel, and to the next row and panel of S
          and C and to their row for that of ones, which is written last; a run is contiguous lines of B;
        - along units, to A's next row and term, to B's next term, and to the next row of S, which is single numbers,
          and C; there is one run, and panels are contiguous lines of B and C;
        - along samples, to the next row and run of A, to the next panel and run of B, which here are rows too, and to
          C's next row and to the row for that of ones, as above; terms and runs are multiples of a vector, and a row of
          C holds one number per panel.

        An empty S is zero, as it always is along samples.
    """

    @intrinsic
    def tile(typingctx, code, a, b, s, c, depth, run):
        def codegen(context, builder, signature, args):
            emitter = _Emitter(context, builder, signature.args[1].types[0].dtype)
            width = emitter.width
            (a_first, *a), (b_first, *b), (s_first, *s), (c_first, *c) = (
                emitter.place(value, kind) if len(kind) else (None, 0, 0, 0)
                for value, kind in zip(args[1:5], signature.args[1:5], strict=True)
            )
            if along == "sample":
                lanes = emitter.lanes
                walks = (
                    _Walk(a_first, lanes, row=a[0], step=1, run=a[1]),
                    _Walk(b_first, lanes, panel=b[0], step=1, run=b[1]),
                    _Walk(s_first),
                    _Walk(c_first, 1, row=c[0], panel=1, ones=c[1]),
                )
            elif along == "unit":
                walks = (
                    _Walk(a_first, 1, row=a[0], step=a[1]),
                    _Walk(b_first, width, panel=width, step=b[0]),
                    _Walk(s_first, 1, row=s[0]),
                    _Walk(c_first, width, row=c[0], panel=width),
                )
            elif along == "column":
                walks = (
                    _Walk(a_first, 1, row=a[0], step=a[1], run=a[2]),
                    _Walk(b_first, width, panel=b[1], step=width, run=b[0]),
                    _Walk(s_first, width, row=s[0], panel=s[1], ones=s[2]),
                    _Walk(c_first, width, row=c[0], panel=c[1], ones=c[2]),
                )
            else:
                walks = (
                    _Walk(a_first, 1, row=width, step=1, run=a[0]),
                    _Walk(b_first, width, panel=b[1], step=width, run=b[0], ahead=b[2], fetch=b[3]),
                    _Walk(s_first, width, row=s[0], panel=s[1]),
                    _Walk(c_first, width, row=width, panel=c[0]),
                )
            done = builder.append_basic_block("done")
            other = builder.append_basic_block("other")
            switch = builder.switch(args[0], other)
            for shape in shapes:
                code = tile_code(*shape)
                block = builder.append_basic_block(f"tile_{code}")
                switch.add_case(code, block)
                builder.position_at_end(block)
                results = emitter.sums(shape, *walks[:3], args[5], args[6])
                emitter.finish(shape, walks[3], results, finishes, *c[-2:])
                builder.branch(done)
            builder.position_at_end(other)
            builder.unreachable()
            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.void(types.int64, a, b, s, c, types.int64, types.int64), codegen

    return tile


class _Emitter:
    """Writes vector IR for one element type at a builder's position."""

    def __init__(self, context, builder, element):
        self.context, self.builder = context, builder
        self.itemsize = element.bitwidth // 8
        self.width = LINE_BYTES // self.itemsize
        self.lanes = VECTORS.bytes // self.itemsize
        self.number = context.get_value_type(element)
        self.vector = ir.VectorType(self.number, self.lanes)
        self.index = ir.IntType(64)
        self.suffix = f"v{self.lanes}f{element.bitwidth}"

    def multiply_add(self, a, b, c):
        if not VECTORS.fused:
            return self.builder.fadd(self.builder.fmul(a, b), c)
        return _call(self.builder, f"llvm.fma.{self.suffix}", self.vector, a, b, c)

    def fields(self, value, kind):
        """Unpack a tuple of an array and integers into the array's pointer and the integers."""
        parts = [self.builder.extract_value(value, k) for k in range(len(kind.types))]
        array = self.context.make_array(kind.types[0])(self.context, self.builder, parts[0])
        return array.data, *parts[1:]

    def place(self, value, kind):
        """Unpack a tuple ``(array, start, ...)`` into a pointer to the element and what follows."""
        data, start, *rest = self.fields(value, kind)
        return self.at(data, start), *rest

    def places(self, values, kinds):
        """Pointers to what tuples ``(array, start)`` name."""
        return [self.place(value, kind)[0] for value, kind in zip(values, kinds, strict=True)]

    def at(self, pointer, *offsets):
        for offset in offsets:
            offset = self.index(offset) if isinstance(offset, int) else offset
            pointer = self.builder.gep(pointer, [offset], source_etype=self.number)
        return pointer

    def times(self, number, distance):
        """``number`` distances, either of which may be a value."""
        if isinstance(distance, int) and isinstance(number, int):
            return number * distance
        number, distance = (self.index(x) if isinstance(x, int) else x for x in (number, distance))
        return self.builder.mul(number, distance)

    def load(self, pointer):
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        return self.builder.load(pointer, align=self.itemsize, typ=self.vector)

    def store(self, value, pointer):
        pointer = self.builder.bitcast(pointer, value.type.as_pointer())
        self.builder.store(value, pointer, align=self.itemsize)

    def stream(self, vector, pointer):
        """Write a line past the caches, which need not fetch it first.

        Such writes may overtake others, but no atomic instruction, and so no barrier of the team.
        """
        if not STREAMS:
            return self.store(vector, pointer)
        pointer = self.builder.bitcast(pointer, vector.type.as_pointer())
        write = self.builder.store(vector, pointer, align=LINE_BYTES)
        write.set_metadata("nontemporal", self.builder.module.add_metadata([ir.IntType(32)(1)]))

    def first_lanes(self, count):
        """A mask of the first ``count`` lanes."""
        builder, int32 = self.builder, ir.IntType(32)
        counts = ir.VectorType(int32, self.lanes)
        first = builder.insert_element(ir.Constant(counts, ir.Undefined), builder.trunc(count, int32), int32(0))
        repeated = self.shuffle(first, first, [0] * self.lanes)
        return builder.icmp_signed("<", ir.Constant(counts, list(range(self.lanes))), repeated)

    def load_masked(self, pointer, mask):
        """A vector with zeros where the mask has none; nothing is read there."""
        zero, align = ir.Constant(self.vector, [0.0] * self.lanes), ir.IntType(32)(self.itemsize)
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        return _call(self.builder, f"llvm.masked.load.{self.suffix}.p0", self.vector, pointer, align, mask, zero)

    def store_masked(self, value, pointer, mask):
        align = ir.IntType(32)(self.itemsize)
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        _call(self.builder, f"llvm.masked.store.{self.suffix}.p0", ir.VoidType(), value, pointer, align, mask)

    def prefetch(self, pointer, level=1, for_writing=False):
        """Fetch the line at a place, which need not be one, into the caches from a level on."""
        int32, data = ir.IntType(32), 1
        pointer = self.builder.bitcast(pointer, ir.IntType(8).as_pointer())
        how = (int32(number) for number in (int(for_writing), 4 - level, data))
        _call(self.builder, "llvm.prefetch.p0", ir.VoidType(), pointer, *how)

    def broadcast(self, pointer):
        return self.repeat(self.builder.load(pointer, align=self.itemsize, typ=self.number))

    def repeat(self, scalar):
        one = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), scalar, ir.IntType(32)(0))
        return self.shuffle(one, one, [0] * self.lanes)

    def shuffle(self, a, b, lanes):
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes)))

    def interleave(self, a, b, half):
        """a[0], b[0], a[1], b[1], ... of the lower or upper half of two vectors."""
        first = half * self.lanes // 2
        pairs = ((k, k + self.lanes) for k in range(first, first + self.lanes // 2))
        return self.shuffle(a, b, [k for pair in pairs for k in pair])

    def sum_lanes(self, vectors):
        """The sum of the lanes of each of a power of two vectors, as one vector."""
        span = self.lanes
        while span > 1:
            span //= 2
            near = [lane & span for lane in range(self.lanes)]
            if len(vectors) > 1:  # lanes with this bit go on with the second half of the vectors
                pairs = zip(vectors[: len(vectors) // 2], vectors[len(vectors) // 2 :], strict=True)
                kept = [lane + self.lanes * bool(bit) for lane, bit in enumerate(near)]
                moved = [(lane ^ span) + self.lanes * bool(bit) for lane, bit in enumerate(near)]
                vectors = [self.builder.fadd(self.shuffle(a, b, kept), self.shuffle(a, b, moved)) for a, b in pairs]
            else:
                (a,) = vectors
                vectors = [self.builder.fadd(a, self.shuffle(a, a, [lane ^ span for lane in range(self.lanes)]))]
        return vectors[0]

    def phi(self, kind, incoming, block):
        node = self.builder.phi(kind)
        node.add_incoming(incoming, block)
        return node

    def line(self, first, shape, walk):
        """Pointers to the vectors of one row of a tile."""
        return [
            self.at(first, self.times(p, walk.panel), lane)
            for p in range(shape.panels)
            for lane in range(0, walk.size, self.lanes)
        ]

    def rows(self, shape, walk):
        """Pointers to the rows of a tile."""
        rows = [self.at(walk.first, self.times(row, walk.row)) for row in range(shape.height)]
        return [*rows, self.at(walk.first, walk.ones)] if shape.ones else rows

    def sums(self, shape, a, b, start, depth, run):
        """Two nested loops, over runs of k and over the terms of a run, with the accumulators as phis."""
        builder, index, vector = self.builder, self.index, self.vector
        n_vectors = len(self.line(b.first, shape, b))
        if start.first is None:
            initial = [ir.Constant(vector, [0.0] * self.lanes)] * ((shape.height + shape.ones) * n_vectors)
        elif start.size == 1:
            initial = [value for row in self.rows(shape, start) for value in [self.broadcast(row)] * n_vectors]
        else:
            initial = [self.load(place) for row in self.rows(shape, start) for place in self.line(row, shape, start)]

        before = builder.block
        runs, terms, after, done = (
            builder.append_basic_block(name) for name in ("runs", "terms", "after", "tile_done")
        )
        builder.branch(runs)

        builder.position_at_end(runs)
        left = self.phi(index, depth, before)
        a_run = self.phi(a.first.type, a.first, before)
        b_run = self.phi(b.first.type, b.first, before)
        sums_before = [self.phi(vector, value, before) for value in initial]
        if b.ahead is not None:
            ahead = self.at(b.first, b.ahead, self.times(builder.sub(depth, left), b.fetch))
        count = builder.select(builder.icmp_signed("<", left, run), left, run)
        builder.branch(terms)

        builder.position_at_end(terms)
        k = self.phi(index, index(0), runs)
        sums = [self.phi(vector, value, runs) for value in sums_before]
        a_k = self.at(a_run, self.times(k, a.step))
        b_k = [self.load(pointer) for pointer in self.line(self.at(b_run, self.times(k, b.step)), shape, b)]
        elements = list(product(range(shape.height), range(len(b_k))))
        if shape.height < len(b_k):  # the fewer ones of A and B stay in registers
            elements.sort(key=lambda element: element[1])
        factor, terms_at_once = (self.broadcast, 1) if a.size == 1 else (self.load, a.size)
        factors, results = {}, list(sums)
        for row, column in elements:
            if row not in factors:
                factors[row] = factor(self.at(a_k, self.times(row, a.row)))
            number = len(b_k) * row + column
            results[number] = self.multiply_add(factors[row], b_k[column], sums[number])
        if shape.ones:
            results[-len(b_k) :] = [builder.fadd(*pair) for pair in zip(sums[-len(b_k) :], b_k, strict=True)]
        if b.ahead is not None:
            self.prefetch(self.at(ahead, self.times(k, b.fetch)), level=2)
        following = builder.add(k, index(terms_at_once))
        k.add_incoming(following, terms)
        for node, value in zip(sums, results, strict=True):
            node.add_incoming(value, terms)
        builder.cbranch(builder.icmp_signed("<", following, count), terms, after)

        builder.position_at_end(after)
        remaining = builder.sub(left, count)
        left.add_incoming(remaining, after)
        a_run.add_incoming(self.at(a_run, a.run), after)
        b_run.add_incoming(self.at(b_run, b.run), after)
        for node, value in zip(sums_before, results, strict=True):
            node.add_incoming(value, after)
        builder.cbranch(builder.icmp_signed(">", remaining, index(0)), runs, done)

        builder.position_at_end(done)
        return results

    def finish(self, shape, c, results, finishes, code, guide):
        """Write a tile, or something made of it and what guides it, or its sums over the lanes."""
        rows = self.rows(shape, c)
        if finishes == ("sum",):
            block = min(self.lanes, shape.height * shape.panels)
            for number in range(0, len(results), block):
                group = results[number : number + block]
                total, stride = self.sum_lanes(group), self.lanes // len(group)
                neighbours = min(len(group), shape.panels)
                for k in range(0, len(group), neighbours):
                    row, panel = divmod(number + k, shape.panels)
                    lanes = [lane * stride for lane in range(k, k + neighbours)]
                    self.store(self.shuffle(total, total, lanes), self.at(rows[row], panel))
            return
        targets = [pointer for row in rows for pointer in self.line(row, shape, c)]
        if len(finishes) == 1:
            self.write(targets, results, *finishes, guide)
            return
        done, other = (self.builder.append_basic_block(name) for name in ("written", "other"))
        switch = self.builder.switch(code, other)
        for name in finishes:
            block = self.builder.append_basic_block(name)
            switch.add_case(FINISHES.index(name), block)
            self.builder.position_at_end(block)
            self.write(targets, results, name, guide)
            self.builder.branch(done)
        self.builder.position_at_end(other)
        self.builder.unreachable()
        self.builder.position_at_end(done)

    def write(self, targets, results, finish, guide):
        """Write vectors, each made by one of ``FINISHES`` with the guiding one that lies so far behind it."""
        builder, zero = self.builder, ir.Constant(self.vector, [0.0] * self.lanes)
        for pointer, value in zip(targets, results, strict=True):
            if finish == "rectify":  # NaN stays NaN
                value = builder.select(builder.fcmp_ordered("<", value, zero), zero, value)
            elif finish == "multiply":
                value = builder.fmul(self.load(self.at(pointer, guide)), value)
            elif finish == "pass":
                value = builder.select(builder.fcmp_ordered(">", self.load(self.at(pointer, guide)), zero), value, zero)
            self.store(value, pointer)


def _line_intrinsic(emit: Callable, result: bool) -> Callable:
    """An intrinsic ``f(*places)`` on whole lines; a place is ``(array, start)``.

    ``emit(emitter, *pointers)`` returns the result, an element, if there is one.
    """

    @intrinsic
    def line(typingctx, places):
        element = places[0].types[0].dtype

        def codegen(context, builder, signature, args):
            emitter = _Emitter(context, builder, element)
            value = emit(emitter, *emitter.places(cgutils.unpack_tuple(builder, args[0]), signature.args[0]))
            return value if result else context.get_dummy_value()

        return (element if result else types.void)(places), codegen

    return line


def _emit_copy(emitter, source, target):
    for lane in range(0, emitter.width, emitter.lanes):
        emitter.store(emitter.load(emitter.at(source, lane)), emitter.at(target, lane))


def _emit_sum(emitter, source):
    """Halve a line again and again: an order that vectors can keep."""
    builder, lanes = emitter.builder, emitter.lanes
    parts = [emitter.load(emitter.at(source, lane)) for lane in range(0, emitter.width, lanes)]
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [builder.fadd(a, b) for a, b in zip(parts[:half], parts[half:], strict=True)]
    (vector,) = parts
    half = lanes // 2
    while half:
        vector = builder.fadd(vector, emitter.shuffle(vector, vector, [(k + half) % lanes for k in range(lanes)]))
        half //= 2
    return builder.extract_element(vector, ir.IntType(32)(0))


#: ``prefetch_to_read((place,))``: a line that will be read soon.
prefetch_to_read = _line_intrinsic(lambda emitter, place: emitter.prefetch(place), result=False)
#: ``prefetch_into_l2((place,))``: the same, but not into L1.
prefetch_into_l2 = _line_intrinsic(lambda emitter, place: emitter.prefetch(place, level=2), result=False)
#: ``prefetch_to_write((place,))``: a line that will be read and written soon.
prefetch_to_write = _line_intrinsic(lambda emitter, place: emitter.prefetch(place, for_writing=True), result=False)
#: ``copy_line((source, target))``
copy_line = _line_intrinsic(_emit_copy, result=False)
#: ``sum_line((source,))``
sum_line = _line_intrinsic(_emit_sum, result=True)


def _make_lanewise(combine: Callable) -> Callable:
    def emit(emitter, source, target):
        for lane in range(0, emitter.width, emitter.lanes):
            place = emitter.at(target, lane)
            value = combine(emitter.builder, emitter.load(place), emitter.load(emitter.at(source, lane)))
            emitter.store(value, place)

    return emit


def _emit_add_product(emitter, a, b, target):
    for lane in range(0, emitter.width, emitter.lanes):
        place = emitter.at(target, lane)
        factors = emitter.load(emitter.at(a, lane)), emitter.load(emitter.at(b, lane))
        emitter.store(emitter.multiply_add(*factors, emitter.load(place)), place)


@intrinsic
def fill_line(typingctx, array, start, value):
    """Set one whole line."""

    def codegen(context, builder, signature, args):
        emitter = _Emitter(context, builder, signature.args[0].dtype)
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        repeated = emitter.repeat(args[2])
        for lane in range(0, emitter.width, emitter.lanes):
            emitter.store(repeated, emitter.at(data, args[1], lane))
        return context.get_dummy_value()

    return types.void(array, types.int64, array.dtype), codegen


#: ``add_line((source, target))``: target += source
add_line = _line_intrinsic(_make_lanewise(lambda builder, a, b: builder.fadd(a, b)), result=False)
#: ``add_product((a, b, target))``: target += a b
add_product = _line_intrinsic(_emit_add_product, result=False)
#: ``multiply_line((source, target))``: target *= source
multiply_line = _line_intrinsic(_make_lanewise(lambda builder, a, b: builder.fmul(a, b)), result=False)
#: ``subtract_line((source, target))``: target -= source
subtract_line = _line_intrinsic(_make_lanewise(lambda builder, a, b: builder.fsub(a, b)), result=False)
#: ``raise_line((source, target))``: target = max(source, target); NaN in the source counts for nothing.
raise_line = _line_intrinsic(
    _make_lanewise(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", b, a), b, a)), result=False
)


def _lanes_intrinsic(emit: Callable) -> Callable:
    """An intrinsic ``f(source, target, count)`` on the first ``count`` numbers of a line.

    ``emit(emitter, source, target, mask)`` does it for one vector.
    """

    @intrinsic
    def lanes(typingctx, source, target, count):
        def codegen(context, builder, signature, args):
            emitter = _Emitter(context, builder, signature.args[0].types[0].dtype)
            a, b = emitter.places(args[:2], signature.args[:2])
            for lane in range(0, emitter.width, emitter.lanes):
                mask = emitter.first_lanes(builder.sub(args[2], emitter.index(lane)))
                emit(emitter, emitter.at(a, lane), emitter.at(b, lane), mask)
            return context.get_dummy_value()

        return types.void(source, target, types.int64), codegen

    return lanes


#: ``take_lanes((source, start), (target, start), count)``: into a line, whose other lanes become zero.
take_lanes = _lanes_intrinsic(lambda emitter, a, b, mask: emitter.store(emitter.load_masked(a, mask), b))
#: ``give_lanes((source, start), (target, start), count)``: out of a line; nothing past them is written.
give_lanes = _lanes_intrinsic(lambda emitter, a, b, mask: emitter.store_masked(emitter.load(a), b, mask))


def _make_transposition(store: Callable) -> Callable:
    """An intrinsic ``f(source, target, count)``; ``store(emitter, vector, pointer)`` writes what it comes to."""

    @intrinsic
    def transpose(typingctx, source, target, count):
        def codegen(context, builder, signature, args):
            emitter = _Emitter(context, builder, signature.args[0].types[0].dtype)
            rows, stride = emitter.place(args[0], signature.args[0])
            (columns,) = emitter.places(args[1:2], signature.args[1:2])
            lanes, width = emitter.lanes, emitter.width
            zero = ir.Constant(emitter.vector, [0.0] * lanes)
            inside = [builder.icmp_signed("<", emitter.index(line), args[2]) for line in range(lanes)]
            for part in range(0, width, lanes):
                lines = (emitter.load(emitter.at(rows, emitter.times(line, stride), part)) for line in range(lanes))
                vectors = [builder.select(is_inside, line, zero) for is_inside, line in zip(inside, lines, strict=True)]
                # Interleaving the first half with the second moves the top bit of an element's line to the bottom of
                # its position; once per bit of the line number, and lines have become columns.
                for _ in range(lanes.bit_length() - 1):
                    halves = zip(vectors[: lanes // 2], vectors[lanes // 2 :], strict=True)
                    vectors = [emitter.interleave(a, b, which) for a, b in halves for which in (0, 1)]
                for lane, vector in enumerate(vectors):
                    store(emitter, vector, emitter.at(columns, (part + lane) * width))
            return context.get_dummy_value()

        return types.void(source, target, types.int64), codegen

    return transpose


#: ``transpose_lines(source, target, count)``: as many lines as a vector has lanes; those from number ``count`` on are
#: taken for zeros. ``source = (array, start, stride)`` are lines that begin so far apart, all of them in memory; they
#: become the columns of as many lines of the target as a panel is wide: ``target = (array, start)``, element
#: (lane, line) at ``start + lane * width + line``.
transpose_lines = _make_transposition(_Emitter.store)
#: The same past the caches with ``STREAMS``; the target starts a line.
stream_transposed = _make_transposition(_Emitter.stream)


@intrinsic
def transpose_quads(typingctx, source, target):
    """Transpose as many rows of ``QUAD`` numbers as a line has.

    ``source = (array, start)`` are the rows, one after the other; they become the columns of ``QUAD`` lines at
    ``target = (array, start)``.
    """

    def codegen(context, builder, signature, args):
        emitter = _Emitter(context, builder, signature.args[0].types[0].dtype)
        rows, lines = emitter.places(args, signature.args)
        width, quad = emitter.width, ir.VectorType(emitter.number, QUAD)

        def load(row):
            return builder.load(emitter.at(rows, row * QUAD), align=emitter.itemsize, typ=quad)

        def join(vectors):
            while len(vectors) > 1:
                every = range(2 * vectors[0].type.count)
                vectors = [emitter.shuffle(a, b, every) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
            return vectors[0]

        def mix(a, b, order):
            """Of each quad in two lines, numbers by their order; those of the second begin with ``QUAD``."""
            return emitter.shuffle(
                a, b, [first + k % QUAD + k // QUAD * width for first in range(0, width, QUAD) for k in order]
            )

        parts = [join([load(row) for row in range(first, width, QUAD)]) for first in range(QUAD)]
        low, high = ([mix(*parts[k : k + 2], order) for k in (0, 2)] for order in ((0, 4, 1, 5), (2, 6, 3, 7)))
        columns = [mix(*pair, order) for pair in (low, high) for order in ((0, 1, 4, 5), (2, 3, 6, 7))]
        for k, column in enumerate(columns):
            emitter.store(column, emitter.at(lines, k * width))
        return context.get_dummy_value()

    return types.void(source, target), codegen


def switch(routines: dict[int, Callable]) -> Callable:
    """Make an intrinsic ``f(code, args)`` that calls ``routines[code](*args)``; there is no check of ``code``.

    One jump, and one function to compile, where a chain of conditions in Python would be one per routine.
    """

    @intrinsic
    def select(typingctx, code, args):
        calls = {}
        for number, function in routines.items():
            kind = typingctx.resolve_value_type(function)
            calls[number] = kind, kind.get_call_type(typingctx, tuple(args), {})
        result = calls[min(calls)][1].return_type

        def codegen(context, builder, signature, values):
            arguments = cgutils.unpack_tuple(builder, values[1])
            done = builder.append_basic_block("done")
            other = builder.append_basic_block("other")
            jump = builder.switch(values[0], other)
            results = []
            for number, (kind, call) in calls.items():
                block = builder.append_basic_block(f"row_{number}")
                jump.add_case(number, block)
                builder.position_at_end(block)
                value = context.get_function(kind, call)(builder, arguments)
                results.append((value, builder.block))
                builder.branch(done)
            builder.position_at_end(other)
            builder.unreachable()
            builder.position_at_end(done)
            joined = builder.phi(results[0][0].type)
            for value, block in results:
                joined.add_incoming(value, block)
            return joined

        return result(types.int64, args), codegen

    return select


class Held(types.Type):
    """The address of a value of type ``kind`` that stays as it is, so that a call need not pass hundreds of words."""

    def __init__(self, kind):
        self.kind = kind
        super().__init__(f"Held({kind})")


@register_model(Held)
class _HeldModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.IntType(8).as_pointer())


def _leaves(kind: ir.Type, *path: int) -> Iterator[tuple[int, ...]]:
    """Where the numbers and pointers in a structure of structures are."""
    if not isinstance(kind, ir.Aggregate):
        yield path
        return
    for k, element in enumerate(kind.elements):
        yield from _leaves(element, *path, k)


def _leaf(builder, pointer, path):
    return builder.gep(pointer, [ir.IntType(32)(k) for k in (0, *path)])


@intrinsic
def hold(typingctx, value):
    """Keep a value on the caller's stack, for as long as the caller runs: ``Held``."""

    def codegen(context, builder, signature, args):
        whole = args[0].type
        pointer = cgutils.alloca_once(builder, whole)
        for path in _leaves(whole):
            builder.store(builder.extract_value(args[0], path), _leaf(builder, pointer, path))
        return builder.bitcast(pointer, ir.IntType(8).as_pointer())

    return Held(value)(value), codegen


@intrinsic
def look(typingctx, held):
    """The value that is held; of what is not used, nothing is read."""

    def codegen(context, builder, signature, args):
        whole = context.get_value_type(signature.return_type)
        pointer = builder.bitcast(args[0], whole.as_pointer())
        value = ir.Constant(whole, ir.Undefined)
        for path in _leaves(whole):
            value = builder.insert_value(value, builder.load(_leaf(builder, pointer, path)), path)
        return value

    return held.kind(held), codegen


def make_call(kinds: Callable | None, overloads: dict) -> Callable:
    """Make an intrinsic ``call(address, args)`` of a compiled function without a result.

    ``kinds(real)`` gives the types of its arguments for numbers of type ``real``, the first such type in ``args``; None
    takes the arguments as they are, which must then be of types in ``overloads``, if there are any when the caller is
    compiled. There is no check of the address.
    """

    @intrinsic
    def call(typingctx, address, args):
        if kinds is None:
            wanted = tuple(types.unliteral(kind) for kind in args)
            if overloads and wanted not in overloads:
                raise TypingError(f"a hook is called with {wanted}, it is compiled for {list(overloads)}")
        else:
            flat = [part for kind in args for part in (kind if isinstance(kind, types.BaseTuple) else (kind,))]
            wanted = kinds(next(kind for kind in flat if isinstance(kind, types.Float)))

        def codegen(context, builder, signature, values):
            given = cgutils.unpack_tuple(builder, values[1])
            function = context.call_conv.get_function_type(types.none, wanted)
            pointer = builder.inttoptr(values[0], function.as_pointer())
            converted = [
                context.cast(builder, value, kind, to) for value, kind, to in zip(given, args, wanted, strict=True)
            ]
            context.call_conv.call_function(builder, pointer, types.none, wanted, converted)
            return context.get_dummy_value()

        return types.void(types.int64, args), codegen

    return call


@intrinsic
def line_size(typingctx, array):
    """How many of an array's numbers a line holds: a constant in the machine code, which ``array.itemsize`` is not."""

    def codegen(context, builder, signature, args):
        return context.get_constant(types.int64, _Emitter(context, builder, array.dtype).width)

    return types.int64(array), codegen


@intrinsic
def lane_count(typingctx, array):
    """The same for loops over a line, hidden from the optimizer: one of known length it would unroll before it could
    make vectors of it.
    """

    def codegen(context, builder, signature, args):
        number = ir.IntType(64)
        size = number(_Emitter(context, builder, array.dtype).width)
        return builder.asm(ir.FunctionType(number, [number]), "", "=r,0", [size], False)

    return types.int64(array), codegen


@register_jitable
def vector_size(array):
    """How many of an array's numbers a vector holds."""
    return line_size(array) * VECTORS.bytes // LINE_BYTES


@intrinsic
def address_of(typingctx, array, start):
    """Where element ``start`` of a 1-D array lies: one word, where the array itself would be passed on as seven."""

    def codegen(context, builder, signature, args):
        kind = signature.args[0]
        data = context.make_array(kind)(context, builder, args[0]).data
        place = builder.gep(data, [args[1]], source_etype=context.get_value_type(kind.dtype))
        return builder.ptrtoint(place, ir.IntType(64))

    return types.int64(array, types.int64), codegen


@intrinsic
def array_at(typingctx, address, size, number):
    """The array of ``size`` numbers of the type of ``number`` at an address; it owns nothing."""
    kind = types.Array(number, 1, "C")

    def codegen(context, builder, signature, args):
        index, itemsize = ir.IntType(64), number.bitwidth // 8
        array = context.make_array(kind)(context, builder)
        populate_array(
            array,
            data=builder.inttoptr(args[0], context.get_value_type(number).as_pointer()),
            shape=[args[1]],
            strides=[index(itemsize)],
            itemsize=index(itemsize),
            meminfo=None,
        )
        return array._getvalue()

    return kind(types.int64, types.int64, number), codegen


@intrinsic
def view(typingctx, array, start, size):
    """``array[start : start + size]`` of a contiguous 1-D array, with none of the checks that a slice makes."""

    def codegen(context, builder, signature, args):
        kind, index = signature.args[0], ir.IntType(64)
        whole, view = context.make_array(kind)(context, builder, args[0]), context.make_array(kind)(context, builder)
        populate_array(
            view,
            data=builder.gep(whole.data, [args[1]], source_etype=context.get_value_type(kind.dtype)),
            shape=[args[2]],
            strides=[index(kind.dtype.bitwidth // 8)],
            itemsize=index(kind.dtype.bitwidth // 8),
            meminfo=None,
        )
        return view._getvalue()

    return array(array, types.int64, types.int64), codegen


def _element(context, builder, array_type, array, position):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [position], source_etype=ir.IntType(64))


@intrinsic
def atomic_add(typingctx, array, position, value):
    """Add to ``array[position]`` (int64) and return what it held before."""

    def codegen(context, builder, signature, args):
        pointer = _element(context, builder, signature.args[0], args[0], args[1])
        return builder.atomic_rmw("add", pointer, args[2], "acq_rel")

    return types.int64(array, types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx, array, position):
    """``array[position]`` (int64) as other threads last wrote it."""

    def codegen(context, builder, signature, args):
        pointer = _element(context, builder, signature.args[0], args[0], args[1])
        return builder.load_atomic(pointer, "acquire", 8, typ=ir.IntType(64))

    return types.int64(array, types.int64), codegen


def _architecture() -> str:
    triple = llvmlite.binding.get_default_triple()
    for prefix, name in (("x86_64", "x86"), ("aarch64", "aarch64"), ("arm64", "aarch64")):
        if triple.startswith(prefix):
            return name
    return "other"


def _call(builder, name, result, *arguments):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@intrinsic
def relax(typingctx):
    """Tell the processor that this is a spinning loop."""

    def codegen(context, builder, signature, args):
        if _architecture() == "x86":
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        elif _architecture() == "aarch64":
            _call(builder, "llvm.aarch64.hint", ir.VoidType(), ir.IntType(32)(1))
        return context.get_dummy_value()

    return types.void(), codegen


#: Intrinsics to read and write the floating-point control word, the bits that flush subnormals, and its type.
_FLOAT_CONTROL = {
    "x86": (("llvm.x86.sse.stmxcsr", "llvm.x86.sse.ldmxcsr"), 0x8040, ir.IntType(32)),
    "aarch64": (("llvm.aarch64.get.fpcr", "llvm.aarch64.set.fpcr"), 1 << 24, ir.IntType(64)),
}


def _read_float_control(builder):
    architecture = _architecture()
    if architecture not in _FLOAT_CONTROL:
        return None
    (read, _), _, kind = _FLOAT_CONTROL[architecture]
    if architecture == "x86":  # through memory
        place = cgutils.alloca_once(builder, kind)
        _call(builder, read, ir.VoidType(), place)
        return builder.load(place)
    return _call(builder, read, kind)


def _write_float_control(builder, state):
    (_, write), _, kind = _FLOAT_CONTROL[_architecture()]
    if _architecture() == "x86":
        place = cgutils.alloca_once(builder, kind)
        builder.store(state, place)
        state = place
    _call(builder, write, ir.VoidType(), state)


@intrinsic
def flush_subnormals(typingctx):
    """Have this thread treat subnormal numbers as zero; returns the former state.

    Adam's moments of a parameter whose gradient has vanished decay into them, and each would cost some 100 cycles.
    """

    def codegen(context, builder, signature, args):
        state = _read_float_control(builder)
        if state is None:
            return context.get_constant(types.int64, 0)
        _, bits, kind = _FLOAT_CONTROL[_architecture()]
        _write_float_control(builder, builder.or_(state, kind(bits)))
        return builder.zext(state, ir.IntType(64)) if kind.width < 64 else state

    return types.int64(), codegen


@intrinsic
def restore_subnormals(typingctx, state):
    """Undo `flush_subnormals`."""

    def codegen(context, builder, signature, args):
        if _architecture() in _FLOAT_CONTROL:
            _, _, kind = _FLOAT_CONTROL[_architecture()]
            _write_float_control(builder, builder.trunc(args[0], kind) if kind.width < 64 else args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# ``sleep_thread(microseconds)``
if os.name == "nt":
    _sleep = types.ExternalFunction("Sleep", types.void(types.uint32))

    @register_jitable
    def sleep_thread(microseconds):
        _sleep(max(1, microseconds // 1000))
else:
    sleep_thread = types.ExternalFunction("usleep", types.int32(types.uint32))
