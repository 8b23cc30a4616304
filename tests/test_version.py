"""The three commands say one version, that of the records that they leave."""

from __future__ import annotations

import importlib
import re

import pytest

from utils.version import VERSION


@pytest.mark.parametrize("command", ["trainColorNetDUL_benchmark", "infer_vos_dul", "evaluation_method"])
def test_version(command, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(command).main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"ColorNet {VERSION}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)
