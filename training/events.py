"""TensorBoard's event file, written as it comes: its own writer's thread keeps what it could not write to itself."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import numpy as np


class EventFile:
    """A new file of curves and pictures in `folder`.

    Args:
        folder: what TensorBoard is pointed at; other runs' files in it stay.
        first_step: where this file takes over: TensorBoard drops what older files say of this step and later ones.
    """

    def __init__(self, folder: Path, first_step: int):
        # They take a second to import, and only the first process of a run writes.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary
        self._event, self._summary = Event, summary
        name = f"events.out.tfevents.{time.time():020.9f}.{socket.gethostname()}.{os.getpid()}"  # read in this order
        self._file = open(folder / name, "xb")  # noqa: SIM115 (closed by `close`)
        self._records = RecordWriter(self._file)
        self._write(first_step, file_version="brain.Event:2")
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def scalar(self, name: str, value: float, step: int) -> None:
        """A point of a curve."""
        self._write(step, summary=self._summary.scalar(name, value))

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """A picture, uint8 RGB [H,W,3]."""
        self._write(step, summary=self._summary.image(name, picture, dataformats="HWC"))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, step: int, **contents: object) -> None:
        self._records.write(self._event(wall_time=time.time(), step=step, **contents).SerializeToString())
        self._records.flush()
