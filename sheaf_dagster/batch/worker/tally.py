"""What answering some rows took."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Tally"]


@dataclass
class Tally:
    """What answering some rows took; of several the sum."""

    seconds: float = 0.0
    """In which the device had work: inside ``batch_predict`` or ``infer``, or rows in flight."""
    halved: int = 0
    error_rows: int = 0
    flight_seconds: float = 0.0
    """Of all rows in flight together."""
    size: int = 0
    """Of the rows as they are, in the backend's measure."""
    padded: int = 0
    """Of the same rows as the device had them."""

    def add(self, other: Tally) -> None:
        """Adds what others took."""
        self.seconds += other.seconds
        self.halved += other.halved
        self.error_rows += other.error_rows
        self.flight_seconds += other.flight_seconds
        self.size += other.size
        self.padded += other.padded
