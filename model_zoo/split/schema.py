"""Reads and writes .tflite files, which are flatbuffers, by the schema that comes with LiteRT."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import numpy as np

from model_zoo.errors import SplitError

IDENTIFIER = b"TFL3"
_IDENTIFIER_AT = slice(4, 8)
_ALIGNMENT = 16  # of the data of buffers: `force_align: 16` in the schema, which flatbuffers for Python ignores


@functools.cache
def load_schema() -> ModuleType:
    """Import the schema; SplitError, with the remedy, if LiteRT is not installed, as on 32-bit boards."""
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise SplitError(
            f"cutting a network needs the package ai-edge-litert ({error})",
            "split it on a 64-bit machine and copy the bundle to this one",
        ) from None
    found: ModuleType = schema_py_generated
    return found


@functools.cache
def _names(enumeration: str) -> dict[int, str]:
    members = vars(getattr(load_schema(), enumeration))
    return {value: name for name, value in members.items() if isinstance(value, int)}


def operator_name(code: int) -> str:
    """Return the name of a built-in operator, such as CONV_2D."""
    return _names("BuiltinOperator").get(code, f"operator number {code}")


def dtype_name(code: int) -> str:
    """Return a tensor's type as numpy names it, such as int8."""
    return _names("TensorType").get(code, f"type number {code}").lower()


def read_model(content: bytes) -> Any:
    """Read a whole file into the schema's `ModelT`.

    Raises SplitError for anything but a .tflite file. A damaged file can raise any exception: read it in a child
    process.
    """
    if content[_IDENTIFIER_AT] != IDENTIFIER:
        raise SplitError(
            "is not a .tflite file (its bytes 4 to 7 are not TFL3)", "give the file that the converter wrote"
        )
    schema = load_schema()
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))


def write_model(model: Any) -> bytes:
    """Return a `ModelT` as the bytes of a file; the same model always has the same bytes."""
    builder = _builder_class()(1024)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


@functools.cache
def _builder_class() -> Any:
    import flatbuffers

    class AlignedBuilder(flatbuffers.Builder):  # type: ignore[misc]  # flatbuffers has no types
        """Aligns byte vectors, which contain the weights, as kernels expect."""

        def CreateNumpyVector(self, x: Any) -> Any:  # noqa: N802 - flatbuffers names it
            if x.dtype == np.uint8:
                self.Prep(_ALIGNMENT, x.size)
            return super().CreateNumpyVector(x)

    return AlignedBuilder
