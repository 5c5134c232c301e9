"""The ctypes declarations say what the header says."""

from __future__ import annotations

import ctypes
import re

import pytest
from conftest import ROOT, TENSORS
from mrm import _dtypes, _errors, _ffi
from mrm._ffi import lib

HEADER = (ROOT / "ffi" / "include" / "mrm.h").read_text()
BARE = re.sub(r"/\*.*?\*/|//[^\n]*", "", HEADER, flags=re.DOTALL)

STRUCTS = {
    "mrm_text_t": _ffi.Text,
    "mrm_open_options_t": _ffi.OpenOptions,
    "mrm_model_info_t": _ffi.ModelInfo,
    "mrm_tensor_t": _ffi.Tensor,
    "mrm_segment_t": _ffi.Segment,
    "mrm_device_t": _ffi.Device,
    "mrm_allocation_t": _ffi.Allocation,
    "mrm_stat_t": _ffi.Stat,
    "mrm_error_t": _ffi.Error,
}

TYPES = {
    "size_t": ctypes.c_size_t,
    "uint32_t": ctypes.c_uint32,
    "int32_t": ctypes.c_int32,
    "uint8_t": ctypes.c_uint8,
    "uint64_t": ctypes.c_uint64,
    "int": ctypes.c_int,
    "bool": ctypes.c_bool,
    "struct mrm_text_t": _ffi.Text,
    "mrm_progress_f": _ffi.PROGRESS,
    "mrm_list_f": _ffi.LIST,
    "mrm_client_h": ctypes.c_void_p,
    "mrm_client_ref": ctypes.c_void_p,
    "mrm_model_h": ctypes.c_void_p,
    "mrm_copy_h": ctypes.c_void_p,
    "mrm_model_ref": ctypes.c_void_p,
}


def fits(declared: str, used: object) -> bool:
    """Whether the ctypes type `used` is the C type `declared`."""
    if "*" not in declared:
        return TYPES[declared.strip()] is used
    # A pointer: to chars, to a type of ours, or to anything at all.
    return used in (ctypes.c_char_p, ctypes.c_void_p) or hasattr(used, "contents")


def test_every_function_is_declared_as_in_the_header() -> None:
    found = re.findall(r"^([\w ]+?[ *]+)(mrm_\w+)\(([^)]*)\);", BARE, re.MULTILINE)
    assert {name for _, name, _ in found} == set(_ffi.FUNCTIONS)
    for result, name, arguments in found:
        used_result, used_arguments, _ = _ffi.FUNCTIONS[name]
        assert fits(result, used_result), name
        declared = [] if arguments == "void" else arguments.split(",")
        types = [re.sub(r"\w+\s*$", "", argument).strip() for argument in declared]
        assert len(types) == len(used_arguments), name
        assert all(map(fits, types, used_arguments)), (name, types)


@pytest.mark.parametrize("name", STRUCTS)
def test_structs_have_the_members_of_the_header(name: str) -> None:
    body = re.search(rf"typedef struct {name} \{{(.*?)\}}", BARE, re.DOTALL)
    assert body is not None
    members = re.findall(r"([\w *]+?[ *])(\w+(?:\[\d+\])?);", body.group(1))
    fields = [(field[0], field[1]) for field in STRUCTS[name]._fields_]
    assert [member.split("[")[0] for _, member in members] == [field for field, _ in fields]
    for (declared, member), (_, used) in zip(members, fields, strict=True):
        if "[" in member:
            # An array: of so many, of a type that is compared by itself.
            assert used._length_ == int(member.split("[")[1].rstrip("]")), (name, member)
            used = used._type_
        assert fits(declared.strip(), used), (name, member)


def test_a_tensor_is_made_of_whole_numbers() -> None:
    # So that one member of all can be read as numbers at equal distances.
    for name in ("dtype", "rank", "shape_ptr", "bytes", "segment", "offset", "device"):
        member = getattr(_ffi.Tensor, name)
        assert member.offset % member.size == ctypes.sizeof(_ffi.Tensor) % member.size == 0


def test_element_types_are_those_of_the_library() -> None:
    numbers = [int(n) for n in re.findall(r"MRM_DTYPE_E_\w+ = (\d+)", BARE)]
    assert sorted(_dtypes.DTYPES) == numbers
    for number, dtype in _dtypes.DTYPES.items():
        assert (str(lib.dtype_name(number)), lib.dtype_bits(number)) == (dtype.name, dtype.bits)
    assert {dtype for _, dtype, _, _ in TENSORS} <= {d.name for d in _dtypes.DTYPES.values()}


def test_every_number_has_an_exception() -> None:
    numbers = [int(n) for n in re.findall(r"MRM_ERROR_E_\w+ = (\d+)", BARE)]
    assert all(issubclass(_errors.class_of(n), _errors.MrmError) for n in numbers)
    assert set(_errors._CLASSES) <= set(numbers)
    assert _errors.class_of(12345) is _errors.MrmError


def test_the_versions_agree() -> None:
    declared = re.search(r"#define MRM_ABI_VERSION (\d+)", BARE)
    assert declared is not None
    assert int(declared.group(1)) == _ffi.ABI_VERSION == lib.abi_version()
