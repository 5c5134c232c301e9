"""Opens a model on the device, and has torch, CuPy and the bare driver read it."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import struct
import traceback

from common import package, say


def tensors_of(path: str) -> dict[str, bytes]:
    """The tensors of a safetensors file."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    return {name: data[slice(*entry["data_offsets"])] for name, entry in header.items()}


class Driver:
    """As much of the driver as copies from the device."""

    def __init__(self) -> None:
        self.cuda = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxPushCurrent_v2", context)

    def call(self, name: str, *arguments: object) -> None:
        code = getattr(self.cuda, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name}: error {code}")

    def read(self, pointer: int, length: int) -> bytes:
        into = ctypes.create_string_buffer(length)
        self.call(
            "cuMemcpyDtoH_v2", into, ctypes.c_uint64(pointer), ctypes.c_size_t(length)
        )
        return into.raw


def check(what: str, holds) -> None:
    """`holds` returns whether it is so; what it raises is the detail."""
    try:
        say(check=what, holds=bool(holds()), detail="")
    except Exception as error:  # noqa: BLE001: any error is a finding
        traceback.print_exc()
        say(check=what, holds=False, detail=f"{type(error).__name__}: {error}")


def plain(model, expected: dict[str, bytes]) -> None:
    """With nothing but the driver."""
    driver = Driver()

    def described() -> bool:
        for name, data in expected.items():
            tensor = model[name]
            interface = tensor.__cuda_array_interface__
            pointer, read_only = interface["data"]
            assert read_only is True, interface
            assert tuple(interface["shape"]) == (len(data),), interface
            assert tuple(tensor.__dlpack_device__()) == (2, 0), tensor.__dlpack_device__()
            assert driver.read(pointer, len(data)) == data, name
        return True

    check("Python: every byte behind __cuda_array_interface__ is right, and read-only", described)


def by_torch(model, expected: dict[str, bytes], opened: str) -> None:
    torch, why = package("torch")
    if torch is None or not torch.cuda.is_available():
        say(skip="torch", why=why or "it sees no device")
        return
    say(fact="torch", value=f"{torch.__version__}, CUDA {torch.version.cuda}")

    def same(tensor, data: bytes) -> bool:
        return bytes(tensor.cpu().numpy()) == data

    def shared() -> bool:
        for name, data in expected.items():
            source = model[name]
            tensor = torch.from_dlpack(source)
            assert tensor.data_ptr() == source.__cuda_array_interface__["data"][0], "a copy"
            assert tensor.device.type == "cuda" and same(tensor, data), name
        return True

    def loaded() -> bool:
        from mrm.safetensors import load_file

        tensors = load_file("mrm:" + opened, device="cuda:0")
        assert tensors.keys() == expected.keys(), tensors.keys()
        return all(
            tensor.is_cuda and same(tensor, expected[name]) for name, tensor in tensors.items()
        )

    def outlives() -> bool:
        import gc

        import mrm

        name, data = next(iter(expected.items()))
        with mrm.open(opened, device="cuda:0") as other:
            tensor = torch.from_dlpack(other[name])
        del other
        gc.collect()
        return same(tensor, data)

    check("torch: every byte through DLPack is right, without a copy", shared)
    check("torch: mrm.safetensors.load_file on the device", loaded)
    check("torch: a tensor keeps its memory after the model is closed", outlives)


def by_cupy(model, expected: dict[str, bytes]) -> None:
    cupy, why = package("cupy")
    if cupy is None:
        say(skip="CuPy", why=why)
        return
    say(fact="CuPy", value=cupy.__version__)

    def shared() -> bool:
        for name, data in expected.items():
            source = model[name]
            array = cupy.from_dlpack(source)
            assert array.data.ptr == source.__cuda_array_interface__["data"][0], "a copy"
            assert cupy.asnumpy(array).tobytes() == data, name
        return True

    def by_interface() -> bool:
        name, data = next(iter(expected.items()))
        return cupy.asnumpy(cupy.asarray(model[name])).tobytes() == data

    check("CuPy: every byte through DLPack is right, without a copy", shared)
    check("CuPy: every byte through __cuda_array_interface__ is right", by_interface)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--socket", "--model", "--file"):
        parser.add_argument(name, required=True)
    arguments = parser.parse_args()
    os.environ["MRM_SOCKET"] = arguments.socket
    numpy, why = package("numpy")
    if numpy is None:
        say(skip="everything in Python", why=f"mrm for Python needs numpy: {why}")
        return
    import mrm

    expected = tensors_of(arguments.file)
    with mrm.open(arguments.model, device="cuda:0") as model:
        plain(model, expected)
        by_torch(model, expected, arguments.model)
        by_cupy(model, expected)


main()
