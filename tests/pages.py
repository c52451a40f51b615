"""Pages of the documentation: their Python, and what it prints.

OMP_NUM_THREADS=1 python tests/pages.py docs/questions/*.md    # puts what is printed into the pages, anew
"""

import contextlib
import io
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

# A block of Python, and the block of text that follows it at once, if one does: what it prints.
STEP = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")
# Machines and versions of PyTorch round differently, and a training carries that on.
RELATIVE, ABSOLUTE = 0.05, 0.02


def blocks(text: str) -> list[str]:
    """The blocks of Python of a page."""
    return [match["code"] for match in STEP.finditer(text)]


def run(page: Path, names: dict, *, left_out: Sequence[str] = ()) -> Iterator[tuple[str, str | None]]:
    """Run the blocks of a page in their order, with `names` as their variables: what each prints, and what it should.

    Blocks in which one of `left_out` stands are not run.
    """
    text = page.read_text(encoding="utf-8")
    for match in STEP.finditer(text):
        if any(words in match["code"] for words in left_out):
            continue
        # Of an error the traceback tells the line of the page.
        code = "\n" * text.count("\n", 0, match.start("code")) + match["code"]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, str(page), "exec"), names)
        yield printed.getvalue(), match["output"]


def same(printed: str, expected: str) -> bool:
    """Whether two texts have the same words, and nearly the same numbers; spaces do not count."""
    words = [NUMBER.sub("#", text).split() for text in (printed, expected)]
    numbers = [[float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (printed, expected)]
    near = (math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE) for a, b in zip(*numbers, strict=False))
    return words[0] == words[1] and len(numbers[0]) == len(numbers[1]) and all(near)


def renew(page: Path) -> None:
    """Write what the blocks of a page print to where it stands there."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        printed = [text for text, _ in run(page, {})]

    def block(match: re.Match) -> str:
        text = printed.pop(0)
        return match[0] if match["output"] is None else f"```python\n{match['code']}```\n\n```text\n{text}```\n"

    page.write_text(STEP.sub(block, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        renew(Path(name).resolve())
