"""Kernels on the host: an assembler from PTX to programs of ptx.c, and the operations that ptx.c is compiled with.

``python tests/ptx.py PROGRAM [ARGUMENT ...]`` runs a Python program with the driver of driver.c in place of NVIDIA's.
"""

from __future__ import annotations

import ctypes
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from cuda.core import ObjectCode

FOLDER = Path(__file__).parent
OPTIONS = ["-O2", "-std=gnu11", "-fwrapv", "-ffp-contract=off", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]

# ---- operations ---------------------------------------------------------------------------------

UNSIGNED, SIGNED, REALS, PREDICATE = ("u16", "u32", "u64"), ("s16", "s32", "s64"), ("f32", "f64"), ("pred",)
INTEGERS = UNSIGNED + SIGNED
NUMBERS = INTEGERS + REALS
#: Name, types of the operands x, y and z, and the result in C; y is n as a number of bits, z is p as a predicate.
ARITHMETIC = (
    ("mov", UNSIGNED + REALS, "x"),
    ("mov", PREDICATE, "x != 0"),
    ("add", NUMBERS, "x + y"),
    ("sub", NUMBERS, "x - y"),
    ("mul", NUMBERS, "x * y"),
    ("mad", INTEGERS, "x * y + z"),
    ("fma", REALS, "fma(x, y, z)"),
    ("div", NUMBERS, "x / y"),
    ("rem", INTEGERS, "x % y"),
    ("rcp", REALS, "1 / x"),
    ("sqrt", REALS, "sqrt(x)"),
    ("neg", SIGNED + REALS, "-x"),
    ("abs", SIGNED, "x < 0 ? -x : x"),
    ("abs", REALS, "fabs(x)"),
    ("min", INTEGERS, "x < y ? x : y"),
    ("min", REALS, "fmin(x, y)"),
    ("max", INTEGERS, "x > y ? x : y"),
    ("max", REALS, "fmax(x, y)"),
    ("and", UNSIGNED + PREDICATE, "x & y"),
    ("or", UNSIGNED + PREDICATE, "x | y"),
    ("xor", UNSIGNED + PREDICATE, "x ^ y"),
    ("not", UNSIGNED, "~x"),
    ("not", PREDICATE, "!x"),
    ("shl", UNSIGNED, "n < 8 * sizeof x ? x << n : 0"),
    ("shr", UNSIGNED, "n < 8 * sizeof x ? x >> n : 0"),
    ("shr", SIGNED, "x >> (n < 8 * sizeof x ? n : 8 * sizeof x - 1)"),
    ("selp", NUMBERS, "p ? x : y"),
    ("cvt_rzi_f64", ("f64",), "trunc(x)"),
)
#: What holds of x and y; with a "u", also where one of them is not a number.
COMPARISONS = (
    ("eq", NUMBERS, "x == y"),
    ("ne", INTEGERS, "x != y"),
    ("ne", REALS, "x < y || x > y"),
    ("lt", NUMBERS, "x < y"),
    ("le", NUMBERS, "x <= y"),
    ("gt", NUMBERS, "x > y"),
    ("ge", NUMBERS, "x >= y"),
    ("equ", REALS, "!(x < y || x > y)"),
    ("neu", REALS, "x != y"),
    ("ltu", REALS, "!(x >= y)"),
    ("leu", REALS, "!(x > y)"),
    ("gtu", REALS, "!(x <= y)"),
    ("geu", REALS, "!(x < y)"),
    ("num", REALS, "x == x && y == y"),
    ("nan", REALS, "x != x || y != y"),
)
#: Operations that ptx.c has itself.
OTHERS = ["bra", "jump", "leave", "barrier", "pack", "unpack", "to_tf32", "to_bf16x2", "mma_tf32", "mma_bf16"]
NAMES = {
    "bar.sync": "barrier",
    "cvt.rna.tf32.f32": "to_tf32",
    "cvt.rn.bf16x2.f32": "to_bf16x2",
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32": "mma_tf32",
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32": "mma_bf16",
    "rcp.approx.ftz.f64": "rcp_f64",  # where an exact one begins
    "cvta.to.global.u64": "mov_u64",
}
#: Parts of a name that say nothing here: how results are rounded, which half of a product they are, kinds of memory.
SILENT = {"rn", "lo", "global", "shared", "v2", "v4"}


def operations() -> dict[str, str]:
    """Statements in C, by the name of the operation."""
    found = dict.fromkeys(OTHERS, "")
    for name, types, result in ARITHMETIC:
        found |= {f"{name}_{of}": f"COMPUTE({of}, {of}, {result})" for of in types}
    for name, types, result in COMPARISONS:
        found |= {f"setp_{name}_{of}": f"COMPUTE(pred, {of}, {result})" for of in types}
    for to in NUMBERS:
        found |= {f"cvt_{to}_{of}": f"COMPUTE({to}, {of}, x)" for of in (NUMBERS if to in REALS else INTEGERS)}
    for sign in "su":
        found[f"mul_wide_{sign}32"] = f"COMPUTE({sign}64, {sign}32, ({sign}64)x * y)"
    for of in NUMBERS:
        # An integer fills its register, which may be wider.
        found[f"ld_{of}"] = f"LOAD({of if of in REALS else 's64'}, {of})"
        found[f"st_{of}"] = f"STORE({of})"
    found["atom_min_s64"] = "ATOMIC(s64, x < y ? x : y)"
    return found


OPERATIONS = operations()
CODES = {name: code for code, name in enumerate(OPERATIONS)}


def definitions() -> str:
    """What ptx.c includes."""
    cases = " ".join(f"case {name}: {code} break;" for name, code in OPERATIONS.items() if code)
    return f"enum {{ {', '.join(OPERATIONS)} }};\n#define CASES {cases}\n"


# ---- programs -----------------------------------------------------------------------------------

#: Registers that every thread finds set, in the order of ptx.c; the last one is the predicate of what has none.
SPECIAL = ["%tid.x", "%laneid", "%ntid.x", "%ctaid.x", "%ctaid.y", "%nctaid.x", "%nctaid.y", "1"]
MOST_OPERANDS = 15
#: What a register holds that nobody has set.
POISON = 0xE5E5E5E5E5E5E5E5


class Program:
    """A kernel with the functions that it calls, from its PTX.

    All operands are registers: parameters, constants and the addresses of shared arrays too, which nobody writes.
    """

    def __init__(self, ptx: str):
        self._registers = {name: k for k, name in enumerate(SPECIAL)}
        self._formals: dict[str, list[str]] = {}
        self._labels: dict[str, int] = {}
        self._parameters: list[tuple[int, int]] = []  # register and size
        self._arrays: list[tuple[int, int, int]] = []  # register, size and alignment
        self._rows: list[list] = []
        self._line = 1
        ptx = re.sub(r"//.*", "", ptx)
        ptx = re.sub(r"(?m)^[ \t]*[{}][ \t]*$", ";", ptx)  # scopes, unlike vectors
        ptx = re.sub(r"(?m)^(\$\w+):", r"label \1;", ptx)
        ptx = re.sub(r"mov\.b64(\s+{)", r"unpack\1", ptx)
        ptx = re.sub(r"mov\.b64(\s+%\w+,\s+{)", r"pack\1", ptx)
        for statement in ptx.split(";"):
            self._line += statement.count("\n")
            self._read(statement)

    def assembled(self) -> bytes:
        """What `load` in ptx.c reads."""
        image = np.array([value(name) for name in self._registers], np.uint64)
        head = [self._labels["entry"], self._threads, *map(len, (image, self._parameters, self._arrays, self._rows))]
        tables = [number for row in self._parameters + self._arrays for number in row]
        instructions = np.zeros((len(self._rows), 5 + MOST_OPERANDS), np.int32)
        for instruction, row in zip(instructions, self._rows, strict=True):
            instruction[: len(row)] = [self._labels.get(item, item) for item in row]
        return np.array(head + tables, np.int64).tobytes() + image.tobytes() + instructions.tobytes()

    def _read(self, statement: str) -> None:
        tokens = re.findall(r"[^\s,{}()\[\]]+", statement)
        if ".entry" in tokens or ".func" in tokens:
            self._begin(statement)
        elif ".shared" in tokens:
            alignment, _, name, size = tokens[tokens.index(".align") + 1 :]
            self._arrays.append((self._register(name), int(size), int(alignment)))
        elif tokens[:1] == ["label"]:
            self._labels[tokens[1]] = len(self._rows)
        elif tokens and not tokens[0].startswith("."):
            condition = tokens.pop(0) if tokens[0].startswith("@") else "@1"
            self._condition = self._register(condition.lstrip("@!")), "!" in condition
            self._instruction(*tokens)

    def _begin(self, statement: str) -> None:
        """The head of the kernel or of a function."""
        self._function = re.search(r"(?:\.entry|\))\s*([\w$]+)\s*\(", statement)[1]
        formals = re.findall(r"\.param\s+\.\w(\d+)\s+([\w$]+)", statement)
        self._is_kernel = ".entry" in statement
        if self._is_kernel:
            self._parameters = [(self._register(name), int(bits) // 8) for bits, name in formals]
            self._threads = int(re.search(r"\.maxntid\s+(\d+)", statement)[1])
        else:
            self._formals[self._function] = [name for _, name in formals]  # the first one is the result
        self._labels["entry" if self._is_kernel else self._function] = len(self._rows)

    def _instruction(self, name: str, *operands: str) -> None:
        kind, *parts = name.split(".")
        if kind == "bra":
            self._add("bra", operands[0])
        elif kind == "ret":
            self._add(*(["leave"] if self._is_kernel else ["jump", self._register("back")]))
        elif kind == "call":
            result, function, *arguments = operands
            formal_result, *formals = self._formals[function]
            back = len(self._rows) + len(arguments) + 2
            for target, source in zip((*formals, "back"), (*arguments, str(back)), strict=True):
                self._move(target, source)
            self._add("bra", function)
            self._move(result, formal_result)
        elif kind in ("ld", "st") and "param" in parts:
            target, source = (operand.partition("+")[0] for operand in operands)
            self._move(target, source)
        elif kind in ("ld", "st", "atom"):
            k = 0 if kind == "st" else len(operands) - 1 if kind == "ld" else 1
            base, _, offset = operands[k].partition("+")
            others = [self._register(operand) for operand in operands[:k] + operands[k + 1 :]]
            self._add(short(name), self._register(base), self._register(offset or "0"), len(others), *others)
        else:
            self._add(short(name), *map(self._register, operands))

    def _move(self, target: str, source: str) -> None:
        self._add("mov_u64", self._register(target), self._register(source))

    def _add(self, operation: str, *operands: int | str) -> None:
        self._rows.append([CODES[operation], self._line, *self._condition, False, *operands])

    def _register(self, name: str) -> int:
        if name.startswith("%") and name not in SPECIAL:
            name = f"{name} of {self._function}"
        return self._registers.setdefault(name, len(self._registers))


def short(name: str) -> str:
    """The name of an operation in `OPERATIONS`."""
    parts = [re.sub(r"^b(?=\d)", "u", part) for part in name.split(".") if part not in SILENT]
    return NAMES.get(name) or "_".join(parts)


def value(register: str) -> int:
    """What a register holds at first: a constant is its own name."""
    if re.fullmatch(r"0[fFdD]\w+", register):
        return int(register[2:], 16)
    return int(register) % (1 << 64) if re.fullmatch(r"-?\d+", register) else POISON


def load_driver() -> None:
    """Build the driver, and let numba-cuda assemble for it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "operations.h").write_text(definitions())
        library = Path(folder, "libcuda.so.1")
        subprocess.run(["cc", *OPTIONS, "-I", folder, "-o", library, FOLDER / "driver.c", "-lm"], check=True)
        ctypes.CDLL(str(library))  # whoever looks for one of this name finds it from now on
    from numba.cuda.codegen import CUDACodeLibrary

    def get_cubin(code: CUDACodeLibrary, cc: tuple | None = None) -> ObjectCode:
        return ObjectCode.from_cubin(Program(code.get_asm_str(cc)).assembled())

    CUDACodeLibrary.get_cubin = get_cubin


if __name__ == "__main__":
    load_driver()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
