"""Columns as bytes: how a checkpoint stores a frame.

The bytes depend neither on the version of pandas nor on whether Arrow is installed. Integers take
as few bytes as their values allow, and each text of a column is stored once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec
import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class PackedTexts:
    """Texts as UTF-8, one after the other; *sizes* are their bytes, as uint32."""

    sizes: np.ndarray[Any, Any]
    joined: memoryview

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        """Pack texts."""
        encoded = [text.encode() for text in texts]
        return cls(np.array(list(map(len, encoded)), "<u4"), memoryview(b"".join(encoded)))

    @cached_property
    def ends(self) -> np.ndarray[Any, Any]:
        """The place behind the last byte of each text."""
        return np.cumsum(self.sizes, dtype=np.int64)

    def to_list(self) -> list[str]:
        """Return the texts."""
        ends = self.ends.tolist()
        whole = str(self.joined, "utf-8")
        if len(whole) == len(self.joined):  # one byte for each character
            return [whole[begin:end] for begin, end in pairwise([0, *ends])]
        return [str(self.joined[begin:end], "utf-8") for begin, end in pairwise([0, *ends])]

    def at(self, places: np.ndarray[Any, Any]) -> list[str]:
        """Return the texts at some places."""
        ends = self.ends[places]
        limits = zip((ends - self.sizes[places]).tolist(), ends.tolist(), strict=True)
        return [str(self.joined[begin:end], "utf-8") for begin, end in limits]


class PackedColumn(NamedTuple):
    """The values of one column.

    *data* are numbers (times: microseconds since 1970); of a column of texts, places in *texts*, -1
    for a missing one. *missing* says where values are missing; None if none is.
    """

    data: np.ndarray[Any, Any]
    missing: np.ndarray[Any, Any] | None = None
    texts: PackedTexts | None = None

    def take(self, rows: np.ndarray[Any, Any]) -> PackedColumn:
        """Return the values of some rows."""
        missing = None if self.missing is None else self.missing[rows]
        return PackedColumn(self.data[rows], missing, self.texts)

    def to_list(self) -> list[Any]:
        """Return the values as Python objects, None where they are missing."""
        if self.texts is not None:
            # Some rows need few of the texts, and each of them once.
            places, rows = np.unique(self.data, return_inverse=True)
            n_missing = int((places < 0).sum())
            texts = [*[None] * n_missing, *self.texts.at(places[n_missing:])]
            values = np.array(texts, dtype=object)[rows]
        elif self.missing is None:
            values = self.data
        else:
            values = self.data.astype(object)
            values[self.missing] = None
        found: list[Any] = values.tolist()
        return found


def columns_of(frame: pd.DataFrame, dtypes: Mapping[str, str]) -> dict[str, PackedColumn]:
    """Return the columns of a frame."""
    return {name: _column_of(frame[name], dtype) for name, dtype in dtypes.items()}


def _column_of(column: pd.Series[Any], dtype: str) -> PackedColumn:
    if dtype == "str":
        places, texts = pd.factorize(column)
        return PackedColumn(places, None, PackedTexts.of(list(texts)))
    if dtype == "category":
        names = PackedTexts.of(list(column.cat.categories))
        return PackedColumn(column.cat.codes.to_numpy(), None, names)
    missing = column.isna().to_numpy()
    if dtype.startswith("datetime64"):
        values = column.dt.tz_localize(None).to_numpy().view("i8").copy()
        values[missing] = 0
    else:
        values = column.to_numpy(dtype=dtype.lower(), na_value=0)
    return PackedColumn(values, missing if missing.any() else None)


#: Bits: their number, and eight in a byte. Numbers: their dtype, and little-endian bytes.
_BITS, _NUMBERS = 1, 2
_SIZE_BYTES = _DTYPE_BYTES = 8


def _encoded(array: np.ndarray[Any, Any]) -> msgspec.msgpack.Ext:
    if array.dtype == bool:
        bits = len(array).to_bytes(_SIZE_BYTES, "little") + np.packbits(array).tobytes()
        return msgspec.msgpack.Ext(_BITS, bits)
    if array.dtype.kind == "i" and len(array):
        # The signed type that holds the largest and the smallest number.
        array = array.astype(np.min_scalar_type(-1 - max(int(array.max()), -1 - int(array.min()))))
    array = array.astype(array.dtype.newbyteorder("<"))
    return msgspec.msgpack.Ext(
        _NUMBERS, array.dtype.str.encode().ljust(_DTYPE_BYTES) + array.tobytes()
    )


def _decoded(code: int, data: memoryview) -> np.ndarray[Any, Any]:
    if code == _BITS:
        count = int.from_bytes(data[:_SIZE_BYTES], "little")
        bits = np.frombuffer(data[_SIZE_BYTES:], "u1")
        return np.unpackbits(bits, count=count).view(bool)
    return np.frombuffer(data[_DTYPE_BYTES:], str(data[:_DTYPE_BYTES], "ascii").strip())


#: Columns to bytes, and back.
pack = msgspec.msgpack.Encoder(enc_hook=_encoded).encode
unpack = msgspec.msgpack.Decoder(dict[str, PackedColumn], ext_hook=_decoded).decode
