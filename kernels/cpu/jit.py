"""How the engine compiles: one set of flags, a disk cache that sees every edit, and tables as compiled code."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from itertools import count
from typing import Any

import numpy as np
from numba import config, njit, typeof
from numba.core import inline_closurecall
from numba.core.codegen import JITCodeLibrary, JITCPUCodegen
from numba.core.compiler_lock import global_compiler_lock
from numba.core.inline_closurecall import InlineWorker
from numba.core.itanium_mangler import mangle_identifier
from numba.np import arrayobj
from numba.np.numpy_support import from_dtype
from numba.types import Type, intp

from ..digest import DIGEST
from .simd import VECTORS, make_call, switch

if config.DISABLE_JIT:
    raise ImportError("fastbp is nothing without Numba's compiler: unset NUMBA_DISABLE_JIT")

#: Options of what Python never calls.
_WITHOUT_WRAPPER = {"no_cpython_wrapper": True}
#: How the names of functions end that nobody calls but kernels.
_INNER = "inner"
#: What is in the names of those that run functions of the user's.
_CUSTOM = "custom"
#: How the names of kernels begin in machine code.
_KERNELS = "_Z" + mangle_identifier(__name__.removesuffix(".cpu.jit")).removesuffix("E")
_names: set[str] = set()
_numbers = count()


def _compile(function: Callable, variant: str = "", **options: Any) -> Callable:
    # In machine code from the disk cache a function is known by its name, and the first one of a name serves all: two
    # closures of one name, cached by two processes, would be taken for each other.
    function.__qualname__ += variant and f"[{variant}]"
    name = f"{function.__module__}.{function.__qualname__}"
    if name in _names:
        raise RuntimeError(f"{name} is compiled twice: give its variants names of their own")
    _names.add(name)
    # No fast-math flag but for the update rules, which have a library of their own: with "reassoc" or "contract" the
    # bits of a result would depend on what the optimizer made of a function in the library that it was first compiled
    # into, and so on which entry point ran first.
    # No reference counts: a kernel borrows its arrays, cannot allocate, and pays no atomic for passing one on.
    # Neither array expressions nor calls from C.
    options |= {"no_rewrites": True, "no_cfunc_wrapper": True}
    return njit(error_model="numpy", nogil=True, _nrt=False, **options)(function)


def new_variant() -> str:
    """A name for what is compiled from functions of the user's."""
    return f"{_CUSTOM} {next(_numbers)}"


def routine(function: Callable, variant: str = "") -> Callable:
    """Compile a function that other kernels call; it becomes part of their code. Closures need a ``variant``."""
    return _compile(function, _inner(variant), **_WITHOUT_WRAPPER)


def _inner(variant: str) -> str:
    return f"{variant} {_INNER}".strip()


def inlined(function: Callable, variant: str = "") -> Callable:
    """Compile a function only as part of its callers, once in each.

    A call would pass every array of a structure by eight words, and a library of its own would have all below it
    optimised once more.
    """
    return _compile(function, variant, inline="always")


def embedded(function: Callable, variant: str = "", **options: Any) -> Callable:
    """Compile a function that becomes part of its callers' machine code, without a call that would pass every array of
    a structure by eight words.
    """
    return _compile(function, _inner(variant), forceinline=True, **_WITHOUT_WRAPPER, **options)


#: All entry points.
ENTRIES: list[Any] = []


def entry(function: Callable, **options: Any) -> Any:
    """Compile an entry point, called from Python and cached on disk.

    Numba's cache looks at the file of the entry point alone (numba#1833); the stamp set here covers all files whose
    code can end up in it. As part of the version it keeps indices of other sources from being read, whose types may be
    gone.

    Raises
    ------
    ImportError
        If there is no folder to write to.
    """
    try:
        dispatcher: Any = _compile(function, cache=True, **options)
    except RuntimeError as error:
        if "no locator" not in str(error):
            raise
        raise ImportError(
            "fastbp keeps compiled code on disk, and may write neither to its own folder nor to the user's cache: "
            "set NUMBA_CACHE_DIR to a folder that it may write to"
        ) from error
    files = dispatcher._cache._cache_file
    files._source_stamp, files._version = DIGEST, f"{files._version} {DIGEST}"
    ENTRIES.append(dispatcher)
    return dispatcher


class _Library(JITCodeLibrary):
    """What Numba compiles a function into, and links into its callers' libraries.

    Numba optimises each function by itself, then each library twice, to find reference counts that cancel out, of which
    there are none here, and makes machine code of it. Here this is done once, where the code is called by its address.
    """

    def add_ir_module(self, ir_module: Any) -> None:
        attributes = [f'"prefer-vector-width"="{8 * VECTORS.bytes}"']
        triple, _, features = self._codegen.magic_tuple()
        if triple.startswith("x86_64"):  # LLVM would rather not estimate roots, whatever the flags allow
            features = ",".join(filter(None, (features, "-fast-vector-fsqrt")))
            attributes.append(f'"target-features"="{features}"')
        for function in ir_module.functions:
            if function.blocks:
                for attribute in attributes:  # which are not among those that llvmlite knows
                    set.add(function.attributes, attribute)
        super().add_ir_module(ir_module)

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        if not self._is_inner():
            # Level 3 makes copies of loops, and a step of a small network just fits into the instruction cache.
            passes, builder = self._codegen._module_pass_manager(opt=2)
            passes.run(self._final_module, builder)

    def _finalize_final_module(self) -> None:
        if self._is_inner():
            self._finalized = True
        else:
            super()._finalize_final_module()

    def _is_inner(self) -> bool:
        return self.name.endswith(f"{_INNER}]")


def _set_env(codegen: Any, name: str, env: Any, set_env: Callable = JITCPUCodegen.set_env) -> None:
    """Tell a function's machine code, if there is any, what it refers to."""
    if codegen._engine.is_symbol_defined(name):
        set_env(codegen, name, env)


def _fix_index(
    context: Any, builder: Any, kind: Any, index: Any, size: Any, fix: Callable = arrayobj.fix_integer_index
) -> Any:
    """Kernels count from an array's front, which need not be found out at each access; a user's function may not."""
    name = builder.function.name
    if name.startswith(_KERNELS) and _CUSTOM not in name:
        return context.cast(builder, index, kind, intp)
    return fix(context, builder, kind, index, size)


class _NoCopy:
    """What takes the place of ``copy`` while a function is inlined."""

    deepcopy = staticmethod(lambda it: it)


def _inline(*args: Any, inline: Callable = InlineWorker.inline_function) -> Any:
    """Inline a function without making two copies of its intermediate code, each of them with all variables for every
    block: it has been made for this call alone.
    """
    with _replaced((inline_closurecall, "copy", _NoCopy)):
        return inline(*args)


@contextmanager
def _replaced(*replacements: tuple[Any, str, Any]) -> Iterator[None]:
    """Give attributes ``(owner, name, value)`` other values for a while."""
    former = [getattr(owner, name) for owner, name, _ in replacements]
    for replacement in replacements:
        setattr(*replacement)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(replacements, former, strict=True):
            setattr(owner, name, value)


@contextmanager
def quick_compilation() -> Iterator[None]:
    """Compile without what Numba does for other code than this, and without garbage collection, which goes through all
    that a compiler builds, again and again, for a sixth of the time. Other threads wait with what they compile.
    """
    with (
        global_compiler_lock,
        _replaced(
            (JITCPUCodegen, "_library_class", _Library),
            (JITCPUCodegen, "set_env", _set_env),
            (arrayobj, "fix_integer_index", _fix_index),
            (InlineWorker, "inline_function", _inline),
        ),
    ):
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_enabled:
                gc.enable()


class Hook:
    """What kernels call by its address: it is compiled and optimised once, by itself, and a function of the user's can
    take its place.

    Attributes
    ----------
    dispatcher : numba dispatcher
        What compiles it.
    kinds : callable or None
        From the type of numbers to those of the arguments.
    call : intrinsic
        ``call(address, args)`` in kernels.
    found : dict
        Addresses by number type.
    """

    def __init__(self, function: Callable, kinds: Callable | None = None):
        """``kinds(real)`` gives the arguments' types for numbers of type ``real``; None takes them as they are."""
        self.dispatcher = entry(function, **_WITHOUT_WRAPPER)
        self.kinds: Any = kinds
        self.found: dict[np.dtype, int] = {}
        self.call = make_call(kinds, self.dispatcher.overloads)

    def replaced_by(self, function: Callable) -> "Hook":
        """A hook of the same arguments for a function of the user's, which no cache keeps."""
        hook = copy(self)
        hook.dispatcher = _compile(function, new_variant(), **_WITHOUT_WRAPPER)
        hook.found = {}
        return hook

    def address(self, dtype) -> int:
        """Where the machine code for numbers of this type lies; it stays there."""
        if dtype not in self.found:
            self.found[dtype] = self._address(self.kinds(from_dtype(dtype)))
        return self.found[dtype]

    def address_for(self, *args: Any) -> int:
        """The same for arguments like these, or of these types."""
        return self._address(tuple(arg if isinstance(arg, Type) else typeof(arg) for arg in args))

    def _address(self, kinds: tuple) -> int:
        with quick_compilation():
            self.dispatcher.compile(kinds)
        compiled = self.dispatcher.overloads[kinds]
        return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


def select(rows: list, compile_row: Callable) -> Callable:
    """Turn a table into one compiled function ``f(code, args)`` that branches to the row with that code.

    Parameters
    ----------
    rows : list
        Rows with an attribute ``code``.
    compile_row : callable
        From a row to a routine ``f(*args)``; all return the same type.
    """
    return switch({row.code: compile_row(row) for row in rows})
