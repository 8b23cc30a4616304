"""What training runs out of, in words."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from utils.errors import UserError

SHARED_MEMORY = ("the loader processes have too little shared memory (/dev/shm) for their batches; give more (docker "
                 "run --ipc=host or --shm-size 8g), or lower TRAIN.NUM_WORKERS (0 needs none)")
SAVING = "lower TRAIN.BATCH_SIZE or TRAIN.NUM_WORKERS, or take --accumulate 2, --checkpoint-activations or bf16"
MEMORY = f"the memory is used up; {SAVING}"
OPEN_FILES = ("the loader processes need more open files than the system allows; raise that (ulimit -n) or lower "
              "TRAIN.NUM_WORKERS")
# What PyTorch's errors say, which are RuntimeErrors without a kind of their own.
SIGNS = {"bus error": SHARED_MEMORY, "shared memory": SHARED_MEMORY, "unable to write to file </torch": SHARED_MEMORY,
         "unable to mmap": SHARED_MEMORY, "too many open files": OPEN_FILES, "items of ancdata": OPEN_FILES,
         "can't allocate memory": MEMORY, "out of memory": f"the GPU's memory is used up; {SAVING}",
         "by signal: killed": f"a loader process was killed, which the system does where memory is used up; {SAVING}"}


@contextmanager
def failures_in_words() -> Iterator[None]:
    """Raise what the machine has too little of within the block as `UserError`, and what is a fault as it is."""
    try:
        yield
    except MemoryError as error:
        raise UserError(MEMORY) from error
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise UserError(OPEN_FILES) from error
    except RuntimeError as error:
        words = next((words for sign, words in SIGNS.items() if sign in str(error).lower()), None)
        if words is None:
            raise
        raise UserError(f"{words} ({' '.join(str(error).splitlines()[-1].split())})") from error
