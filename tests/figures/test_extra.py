"""Figures without matplotlib."""

import importlib
import sys

import pytest

from vaentropy.errors import MissingExtraError


def test_a_missing_library_is_one_line(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("vaentropy.figures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib is not installed; run: pip install 'vaentropy\[report\]'"):
        importlib.import_module("vaentropy.figures")
