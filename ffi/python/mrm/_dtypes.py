"""Element types of safetensors, and what numpy calls them."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from ._ffi import Tensor


class DType(NamedTuple):
    """One element type."""

    #: The name that safetensors headers use.
    name: str
    #: Size of one element in bits.
    bits: int
    #: What it is called, in numpy itself or in ml_dtypes; None where neither can view packed bits.
    numpy_name: str | None
    #: Whether numpy has it itself.
    native: bool


#: By the numbers of ``mrm_dtype_e``.
DTYPES: dict[int, DType] = {
    1: DType("BOOL", 8, "bool", True),
    2: DType("U8", 8, "uint8", True),
    3: DType("I8", 8, "int8", True),
    4: DType("U16", 16, "uint16", True),
    5: DType("I16", 16, "int16", True),
    6: DType("U32", 32, "uint32", True),
    7: DType("I32", 32, "int32", True),
    8: DType("U64", 64, "uint64", True),
    9: DType("I64", 64, "int64", True),
    10: DType("F16", 16, "float16", True),
    11: DType("BF16", 16, "bfloat16", False),
    12: DType("F32", 32, "float32", True),
    13: DType("F64", 64, "float64", True),
    14: DType("C64", 64, "complex64", True),
    15: DType("F8_E5M2", 8, "float8_e5m2", False),
    16: DType("F8_E4M3", 8, "float8_e4m3fn", False),
    17: DType("F8_E8M0", 8, "float8_e8m0fnu", False),
    18: DType("F6_E2M3", 6, None, False),
    19: DType("F6_E3M2", 6, None, False),
    20: DType("F4", 4, None, False),
    21: DType("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", False),
    22: DType("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", False),
}


@functools.lru_cache(maxsize=None)
def numpy_dtype(code: int) -> np.dtype[Any]:
    """The numpy type for a number of ``mrm_dtype_e``."""
    import numpy as np

    dtype = DTYPES.get(code)
    if dtype is None:
        raise TypeError(f"unknown element type {code}: the daemon is newer; upgrade this package")
    if dtype.native:
        return np.dtype(dtype.numpy_name).newbyteorder("<")
    if dtype.numpy_name is None:
        raise TypeError(
            f"{dtype.name} packs elements into parts of bytes, which numpy cannot view; use "
            "tensor(name, raw=True) for the bytes"
        )
    try:
        import ml_dtypes
    except ImportError as error:
        raise TypeError(
            f"numpy has no {dtype.numpy_name}; install ml_dtypes, or use "
            "tensor(name, raw=True) for the bits"
        ) from error
    found = getattr(ml_dtypes, dtype.numpy_name, None)
    if found is None:
        raise TypeError(
            f"ml_dtypes {ml_dtypes.__version__} has no {dtype.numpy_name}; upgrade ml_dtypes, or "
            "use tensor(name, raw=True) for the bits"
        )
    return np.dtype(found)


def raw_view(code: int, shape: tuple[int, ...], nbytes: int) -> tuple[str, tuple[int, ...]]:
    """How to look at the bits of a type: unsigned integers of its width, or plain bytes."""
    bits = DTYPES[code].bits if code in DTYPES else 0
    if bits in (8, 16, 32, 64):
        return f"<u{bits // 8}", shape
    return "u1", (nbytes,)


def as_bytes(buffer: memoryview) -> np.ndarray[Any, Any]:
    """All of ``buffer``: tensors are arrays over it."""
    import numpy as np

    return np.frombuffer(buffer, np.uint8)


def as_array(buffer: memoryview, offset: int, tensor: Tensor, raw: bool) -> Any:
    """The tensor whose elements begin at `offset` in `buffer`, as an array of that memory."""
    import numpy as np

    shape = tuple(tensor.shape_ptr[: tensor.rank])
    dtype: Any
    if raw:
        dtype, shape = raw_view(tensor.dtype, shape, tensor.bytes)
    else:
        dtype = numpy_dtype(tensor.dtype)
    # Not `np.ndarray(buffer=...)`: that looks through the view at the buffer underneath, and
    # would let a caller make the array writeable, to die of a fault at the first write.
    return np.frombuffer(buffer, dtype, math.prod(shape), offset).reshape(shape)
