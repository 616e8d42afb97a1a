"""What plots share: matplotlib when it is first needed, times in UTC, names that can be drawn."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from regards_nb.errors import SettingsError


def pyplot() -> Any:
    """Return matplotlib.pyplot.

    Raises
    ------
    SettingsError
        If matplotlib is not installed.
    """
    try:
        return import_module("matplotlib.pyplot")
    except ImportError as exc:
        raise SettingsError(
            'plotting needs matplotlib: pip install "regards_nb[plot]", then restart the kernel'
        ) from exc


def dress(ax: Any, *, remark: str = "", has_times: bool = True) -> None:
    """Give a plot over time its clock, its legend, and no more lines than it needs."""
    if has_times:
        dates = import_module("matplotlib.dates")
        locator = dates.AutoDateLocator()
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
        if ax.get_legend_handles_labels()[1]:
            legend = {"ncols": 8, "frameon": False, "fontsize": "small"}
            ax.legend(loc="lower left", bbox_to_anchor=(0, 1), **legend)
    ax.set_xlabel(f"UTC; {remark}" if remark else "UTC")
    ax.spines[["top", "right", "left"]].set_visible(False)


def say_nothing_yet(ax: Any, sentence: str) -> None:
    """Show why there is nothing to see, in place of an empty plot."""
    ax.text(0.5, 0.5, sentence, ha="center", va="center", transform=ax.transAxes)
    ax.set_xticks([])


def drawable(label: str) -> str:
    """Replace what the font cannot draw: matplotlib would warn at every draw."""
    fonts = import_module("matplotlib.font_manager")
    font = fonts.get_font(fonts.findfont(fonts.FontProperties()))
    return "".join(char if font.get_char_index(ord(char)) else "□" for char in label)
