"""The version of this software, as `--version` says it and as results and checkpoints keep it."""

VERSION = "1.0.0"
