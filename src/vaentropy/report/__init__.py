"""One self-contained HTML page about a run, or about several beside each other."""

from importlib.util import find_spec as _find_spec

from vaentropy.errors import MissingExtraError as _MissingExtraError

# Before the modules below, which import them.
for _library in ("matplotlib", "jinja2"):
    if _find_spec(_library) is None:
        raise _MissingExtraError(_library, "report")

from vaentropy.report.page import render as render  # noqa: E402
from vaentropy.report.subject import Subject as Subject  # noqa: E402
