"""What the guide asks of Sphinx: the API from what is public, the command line from its help."""

import inspect
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import click
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import vaentropy
from vaentropy.cli import commands, studies, sweeps  # noqa: F401  # they add their verbs to the group
from vaentropy.cli.group import vaentropy as group

__all__ = ["public_names", "setup"]

API = Path(__file__).parent / "api"
# The command's help, as wide as a block of the page.
HELP_WIDTH = 88
CODE = re.compile(r"`([^`\n]+)`(?=(\w?))")
# What means something in reStructuredText, and nothing in our docstrings.
MARKS = re.compile(r"([*|\\]|_\b)")


def public_names(module: str) -> list[str]:
    """The names that a module offers and does not itself take from another public place.

    A package says so by `__all__`, or by `import X as X`; the names of `vaentropy` itself stand on its own page alone.
    """
    if module == "vaentropy":
        return sorted(vaentropy._HOMES, key=str.lower)
    found = import_module(module)
    names = getattr(found, "__all__", None) or [
        name for name, value in vars(found).items() if name[0] != "_" and _is_ours(value)
    ]
    return [name for name in names if name not in vaentropy._HOMES]


def _is_ours(value: Any) -> bool:
    return (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith("vaentropy.")


class Api(SphinxDirective):
    """The public names of a module, each from its docstring; `:except:` leaves out those that are for our own use."""

    required_arguments = 1
    option_spec: ClassVar = {"except": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        module = self.arguments[0]
        left_out = self.options.get("except", "").split()
        unknown = set(left_out) - set(public_names(module))
        if unknown:
            raise self.error(f"{module} has no {', '.join(unknown)} to leave out")
        lines = []
        for name in public_names(module):
            if name not in left_out:
                value = getattr(import_module(module), name)
                kind = _kind(value)
                members = ["   :members:"] if kind == "class" else []
                lines += [f".. auto{kind}:: {module}.{name}", *members, ""]
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *lines, "```"]))


def _kind(value: Any) -> str:
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if inspect.isroutine(value) else "data"


class Help(SphinxDirective):
    """What `vaentropy --help` and the help of each verb print."""

    def run(self) -> list[nodes.Node]:
        settings = {**group.context_settings, "terminal_width": HELP_WIDTH}
        with click.Context(group, info_name="vaentropy", **settings) as top:
            lines = []
            for verb in group.list_commands(top):
                command = group.get_command(top, verb)
                with click.Context(command, info_name=verb, parent=top) as context:
                    lines += [f"## {verb}", *_block(command.get_help(context))]
            first = self.parse_text_to_nodes("\n".join(_block(group.get_help(top))))
        return first + self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def _block(text: str) -> list[str]:
    return ["", "```text", *text.splitlines(), "```", ""]


@cache
def _homes() -> dict[str, str]:
    """Where the names that docstrings mention are explained: `evaluate` as `vaentropy.evaluate`."""
    pages = [page.stem for page in API.glob("*.md") if page.stem != "index"]
    modules = [page if page == "vaentropy" else f"vaentropy.{page}" for page in sorted(pages)]
    return {name: f"{module}.{name}" for module in modules for name in public_names(module)}


def _escaped(line: str) -> str:
    """A line of a docstring in reStructuredText: names of the API become links, other code stays code."""
    parts, end = [], 0
    for match in CODE.finditer(line):
        code, letter = match[1], match[2]
        target = _homes().get(code)
        role = f":py:obj:`{code} <{target}>`" if target else f"``{code}``"
        # A letter right behind would keep the markup from ending.
        parts += [MARKS.sub(r"\\\1", line[end : match.start()]), role, "\\ " if letter else ""]
        end = match.end()
    return "".join([*parts, MARKS.sub(r"\\\1", line[end:])])


def _converted(lines: list[str]) -> Iterator[str]:
    """A docstring as ours are written, in reStructuredText; an indented block after an empty line stands as it is."""
    in_block, last = False, ""
    for before, line in zip(["", *lines], lines, strict=False):
        indented = line.startswith("    ")
        if indented and not before.strip() and last and last[0] != " ":
            in_block = True
            yield from ("::", "")
        in_block = in_block and (indented or not line.strip())
        last = line if line.strip() else last
        yield line if in_block else _escaped(line)


def _convert(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # Or napoleon takes what stands before the colon for the type of a property.
    first = ["\\ "] if what == "property" else []
    lines[:] = [*first, *_converted(lines)]


def _leave_out(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    # scikit-learn gives methods of its own to a class that derives from its.
    foreign = inspect.isfunction(obj) and not str(getattr(obj, "__module__", "")).startswith("vaentropy")
    return True if foreign else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("api", Api)
    app.add_directive("help", Help)
    # Before napoleon, which has 500.
    app.connect("autodoc-process-docstring", _convert, priority=400)
    app.connect("autodoc-skip-member", _leave_out)
    return {"parallel_read_safe": True}
