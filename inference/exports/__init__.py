"""Results in the formats that other programs read; `tools/export.py` is the command."""
