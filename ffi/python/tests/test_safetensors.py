"""The functions of the safetensors package: the same answers, without a copy."""

from __future__ import annotations

import inspect

import mrm
import mrm.safetensors as ours
import numpy as np
import pytest
from conftest import Daemon
from mrm._copy import private_image

theirs = pytest.importorskip("safetensors", reason="safetensors is not installed")
NATIVE = ["floats", "longs", "scalar", "empty", "half", "flags", "odd"]


@pytest.fixture
def path(daemon: Daemon) -> str:
    return str(daemon.models / "small.safetensors")


def test_the_same_answers(path: str) -> None:
    with theirs.safe_open(path, "np") as a, ours.safe_open(path, "np") as b:
        assert b.keys() == a.keys()
        assert b.offset_keys() == a.offset_keys()
        assert b.metadata() == a.metadata()
        for name in NATIVE:
            x, y = a.get_tensor(name), b.get_tensor(name)
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
            assert not y.flags.writeable
        for name in a.keys():
            x, y = a.get_slice(name), b.get_slice(name)
            assert (x.get_shape(), x.get_dtype()) == (y.get_shape(), y.get_dtype())
        x, y = a.get_slice("floats"), b.get_slice("floats")
        for index in (1, -1, slice(1, 3), (slice(None), slice(0, 4, 2)), (slice(1, None), 2), ...):
            assert np.array_equal(x[index], y[index]), index


def test_the_same_errors(path: str, daemon: Daemon) -> None:
    assert issubclass(ours.SafetensorError, theirs.SafetensorError)
    for module in (theirs, ours):
        error = module.SafetensorError
        with module.safe_open(path, "np") as file:
            with pytest.raises(error, match="File does not contain tensor none"):
                file.get_tensor("none")
            with pytest.raises(error, match="File does not contain tensor none"):
                file.get_slice("none")
            with pytest.raises(error, match="Error during slicing"):
                file.get_slice("floats")[5]
        with pytest.raises(error, match="File is closed"):
            file.keys()
        with pytest.raises(FileNotFoundError):
            module.safe_open(daemon.models / "nothing", "np")
        with pytest.raises(error, match="framework xx is invalid"):
            module.safe_open(path, "xx")
        with pytest.raises(error, match="backend"):
            module.safe_open(path, "np", backend="xx")
        with pytest.raises(error, match="Error while deserializing header"):
            module.safe_open(daemon.models / "broken.safetensors", "np")


def test_the_same_signatures() -> None:
    import safetensors.numpy

    import mrm.safetensors.numpy

    def arguments(function: object) -> list[tuple[str, object, object]]:
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters if p.name != "self"]

    assert arguments(mrm.safetensors.numpy.load_file) == arguments(safetensors.numpy.load_file)
    names = [name for name, *_ in arguments(ours.safe_open)]
    assert names == ["filename", "framework", "device", "backend"]


def test_load_file(daemon: Daemon) -> None:
    import safetensors.numpy

    import mrm.safetensors.numpy

    large = daemon.models / "large-1.safetensors"
    expected = safetensors.numpy.load_file(large)
    for load in (ours.load_file, mrm.safetensors.numpy.load_file):
        loaded = load(large)
        assert loaded.keys() == expected.keys()
        assert all(np.array_equal(loaded[name], expected[name]) for name in expected)


def test_registered_names_and_sharded_models(daemon: Daemon) -> None:
    with ours.safe_open("mrm:small", framework="numpy") as file:
        assert file.get_tensor("floats").shape == (3, 4)
    assert sorted(ours.load_file("mrm:sharded")) == ["part.0", "part.1"]
    assert sorted(ours.load_file(daemon.models / "sharded")) == ["part.0", "part.1"]
    with pytest.raises(ours.SafetensorError, match="not a safetensors file"):
        ours.safe_open("mrm:blob", "np")
    with pytest.raises(mrm.NotFound):
        ours.safe_open("mrm:nothing", "np")


def test_tensors_outlive_the_file(daemon: Daemon) -> None:
    with ours.safe_open("mrm:large", "np") as file:
        tensor = file.get_tensor("part.0")
    assert tensor.sum() == 1 << 20


def test_a_private_image_is_written_by_one_process_alone(daemon: Daemon) -> None:
    with mrm.Client(daemon.socket) as client:
        before = client.stat("large").leases
        model = client.open("large")
        image = private_image(model.hold(), 0)
        offset = model.info("part.0").offset
        shared = model["part.0"]
        # At the start of a huge page, or none of the model's could be mapped.
        assert np.frombuffer(image, np.uint8).ctypes.data % (2 << 20) == 0
        image[offset : offset + 4] = b"\0\0\0\x40"
        assert np.frombuffer(image, "<f4", 2, offset).tolist() == [2.0, 1.0]
        assert shared[0] == 1.0
        del shared
        model.close()
        assert client.stat("large").leases == before + 1, "the image keeps the lease"
        del image
        assert client.stat("large").leases == before


def test_torch_tensors_are_private(daemon: Daemon) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import mrm.safetensors.torch

    first = mrm.safetensors.torch.load_file(daemon.models / "small.safetensors")
    second = ours.load_file("mrm:small", framework="pt")
    assert first["brain"].dtype == torch.bfloat16
    assert first["empty"].shape == (0, 3)
    first["floats"].zero_()
    assert not torch.equal(first["floats"], second["floats"])


def test_without_torch_the_error_says_what_to_do(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ImportError, match="install torch"):
        ours.safe_open("mrm:small", "pt")
