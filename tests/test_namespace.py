"""The top namespace: small, explicit, and the same for a type checker as at run time."""

import ast
import subprocess
import sys
from pathlib import Path

import vaentropy


def test_lazy_names_are_those_that_type_checkers_see():
    tree = ast.parse(Path(vaentropy.__file__).read_text())
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module.startswith("vaentropy")
    ]
    seen = {alias.asname: node.module for node in imports for alias in node.names}
    assert seen == vaentropy._HOMES


def test_every_name_is_there_and_listed():
    for name in vaentropy._HOMES:
        assert getattr(vaentropy, name).__name__ == name
    assert set(vaentropy._HOMES) <= set(dir(vaentropy))
    assert not hasattr(vaentropy, "nonsense")


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, vaentropy; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
