"""How the kernel's parts are compiled, and the names of what they work on.

With NUMBA_DISABLE_JIT=1 all of it runs as plain Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np import arrayobj

Rows: TypeAlias = npt.NDArray[np.void]
Links: TypeAlias = npt.NDArray[np.int32]
Words: TypeAlias = npt.NDArray[np.int64]
_njit: Any = njit  # its stubs do not know every option
F = TypeVar("F", bound=Callable[..., Any])
Row: TypeAlias = Any
"""One record of a structured array; NumPy has no type for it that knows its fields."""
Int: TypeAlias = Any
"""An int64 in compiled code; without the compiler an int or an np.int64, as it comes."""
Bool: TypeAlias = Any
"""Likewise a bool or an np.bool."""
Id: TypeAlias = Any
"""A uint64: an account id, half of an event's id, or a hash."""

_PART: Final = {"error_model": "numpy", "_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_ENTRY: Final = {"error_model": "numpy", "_nrt": False, "cache": True, "nogil": True}


def compiled(function: F) -> F:
    """Compile a part of the kernel. Nothing in it allocates, so it goes without reference counts, 2/3 of the time."""
    return cast(F, _njit(**_PART)(function))


def inlined(function: F) -> F:
    """The same for what is small or hot."""
    return cast(F, _njit(**_PART, forceinline=True)(function))


def entry_point(function: F) -> F:
    """The same for what Python calls: kept on disk, and run without the interpreter's lock."""
    return cast(F, _njit(**_ENTRY)(function))


# Prefetching. A batch touches a dozen random cache lines per row; asking for those of the next rows while one is worked
# on hides most of the waiting.


_make_array: Any = arrayobj.make_array
_declare: Any = cgutils.get_or_insert_function


@intrinsic
def _llvm_prefetch(_context: Any, rows: Any, index: Any, offset: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = _make_array(signature.args[0])(context, builder, arguments[0])
        byte = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(signature.args[0].dtype)))
        place = builder.add(builder.mul(arguments[1], size), arguments[2])
        address = builder.gep(builder.bitcast(array.data, byte), [place])
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = _declare(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, word(1), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp), codegen


def prefetch(rows: npt.NDArray[Any], index: Int, offset: Int) -> None:
    """Ask for the cache line of `rows[index]`, `offset` bytes in. Only a hint: without the compiler it does nothing."""


_ask_for: Any = _llvm_prefetch


@overload(prefetch)
def _prefetch(rows: Any, index: Any, offset: Any) -> Any:
    def ask(rows: Any, index: Any, offset: Any) -> None:
        _ask_for(rows, index, offset)

    return ask
