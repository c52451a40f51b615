"""One self-contained HTML page about a run, or about several beside each other."""

from vaentropy.report.page import render as render
from vaentropy.report.subject import Subject as Subject
