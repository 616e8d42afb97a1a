"""Frames for other programs: plain dtypes, and files in CSV or Parquet."""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING, Any

import pandas as pd

from regards_nb.arguments import check_choice
from regards_nb.errors import SettingsError, WorkspaceError
from regards_nb.text import replace_surrogates

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Control characters except tab and line ends. Excel files, XML and C strings cannot hold them.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
#: A spreadsheet runs a cell that begins so as a formula.
_FORMULA = re.compile(r"\s*[=+\-@]")


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with the dtypes that every program can read.

    Excel, HDF5, netCDF, Stata, ORC and hvplot refuse some of the dtypes that ``tracker.events``,
    ``.orders``, ``.files`` and ``.rejected`` have.

    Parameters
    ----------
    frame : pandas.DataFrame
        A frame of a tracker, or any other.

    Returns
    -------
    pandas.DataFrame
        A copy in which

        - a named index is columns, and the rows are counted from 0;
        - times are UTC without a zone (``datetime64[ns]``);
        - texts, categories and bytes are Python strings (dtype ``object``), missing ones are
          empty, and control characters are replaced by U+FFFD;
        - nullable numbers are ``int64``, or ``float64`` with NaN if some are missing; nullable
          booleans are ``bool`` with False for missing ones.

    Examples
    --------
    >>> import pandas as pd
    >>> plain(pd.DataFrame({"errors": pd.array([1, None], dtype="Int64")}))["errors"].dtype
    dtype('float64')
    """
    flat = with_names_as_columns(frame)
    return pd.DataFrame({name: _plain_column(flat[name]) for name in flat}, index=flat.index)


def with_names_as_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame whose named index levels are columns, and whose rows are counted from 0."""
    names = [name for name in frame.index.names if name is not None]
    return frame.reset_index(drop=not names)


def _plain_column(column: pd.Series[Any]) -> pd.Series[Any]:
    dtype = column.dtype
    if isinstance(dtype, pd.DatetimeTZDtype):
        naive: pd.Series[Any] = column.dt.tz_convert("UTC").dt.tz_localize(None)
        return naive.astype("datetime64[ns]")
    if pd.api.types.is_datetime64_dtype(dtype):
        return column.astype("datetime64[ns]")
    if pd.api.types.is_bool_dtype(dtype):
        return column.fillna(value=False).astype(bool)
    if pd.api.types.is_numeric_dtype(dtype):
        is_whole = pd.api.types.is_integer_dtype(dtype) and not column.hasnans
        return column.astype("int64") if is_whole else column.astype("float64")
    if isinstance(dtype, pd.CategoricalDtype):
        column = column.astype(object)
    texts = ["" if _is_missing(value) else _plain_text(value) for value in column]
    return pd.Series(texts, index=column.index, dtype=object)


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or value != value  # noqa: PLR0124


def _plain_text(value: object) -> str:
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return _CONTROLS.sub("\ufffd", replace_surrogates(text))


def write_frames(frames: Mapping[str, pd.DataFrame], folder: Path, kind: str) -> list[Path]:
    """Write each frame to a file of its name; see `OrderTracker.export`."""
    check_choice("kind", kind, "csv", "parquet")
    if kind == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise SettingsError('Parquet needs pyarrow: pip install "regards_nb[parquet]"')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_written(frame, folder / f"{name}.{kind}") for name, frame in frames.items()]
    except OSError as exc:
        raise WorkspaceError(
            f"cannot write the export to {folder}: {exc.strerror or exc}. Give the name of a "
            "folder, new or not, to which you may write"
        ) from exc


def _written(frame: pd.DataFrame, path: Path) -> Path:
    """Write a frame to a file; if that fails, an earlier file stays as it was."""
    flat = with_names_as_columns(frame)
    temporary = path.with_name(f".{path.name}.part")
    if path.suffix == ".csv":
        _without_formulas(flat).to_csv(temporary, index=False)
    else:
        flat.to_parquet(temporary, index=False)
    return temporary.replace(path)


def _without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame for CSV: a spreadsheet shows each text and runs none.

    An apostrophe before the text is how a spreadsheet marks a cell as text.
    """
    changed: dict[Any, list[str]] = {}
    for name in frame:
        column: pd.Series[Any] = frame[name]
        if pd.api.types.is_numeric_dtype(column.dtype) or hasattr(column, "dt"):
            continue
        changed[name] = [
            f"'{text}" if _FORMULA.match(text) else text
            for text in ("" if _is_missing(v) else _plain_text(v) for v in column)
        ]
    return frame.assign(**changed)
