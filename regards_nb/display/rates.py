"""How fast downloads are, measured from what a view shows."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regards_nb.orders import OrderKey, OrderState


class DownloadRates:
    """Measures how fast downloads are, from the snapshots that one view shows."""

    #: The rate is the mean of so many seconds.
    WINDOW_S = 15.0

    def __init__(self) -> None:
        self._samples: dict[OrderKey, deque[tuple[float, int]]] = {}

    def update(self, orders: Iterable[OrderState], now_s: float) -> None:
        """Take a sample of each running download, at a time of a monotonic clock."""
        running = {order.key: order.downloaded_bytes for order in orders if order.downloading}
        self._samples = {key: self._samples.get(key, deque()) for key in running}
        for key, samples in self._samples.items():
            samples.append((now_s, running[key]))
            while len(samples) > 2 and now_s - samples[1][0] >= self.WINDOW_S:
                samples.popleft()

    def of(self, key: OrderKey) -> float | None:
        """Return the bytes per second of a download; None until there are two samples."""
        samples = self._samples.get(key)
        if samples is None or len(samples) < 2 or samples[-1][0] - samples[0][0] < 0.5:
            return None
        (begin_s, before), (end_s, after) = samples[0], samples[-1]
        return max(after - before, 0) / (end_s - begin_s)

    def total(self) -> float:
        """Return the bytes per second of all downloads."""
        return sum(filter(None, map(self.of, self._samples)))
