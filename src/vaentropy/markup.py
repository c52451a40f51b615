"""Small pieces of HTML for notebooks: tables and paragraphs of text, which is escaped.

There are no colours and no style sheet, so that they look like the notebook that they are in, light or dark.
"""

import html
from collections.abc import Collection, Iterable, Sequence

__all__ = ["listed", "paragraph", "preformatted", "table"]

TABLE = "border-collapse:collapse;font-variant-numeric:tabular-nums"
CAPTION = "text-align:left;white-space:nowrap"
TEXT = "padding:0 .5em;text-align:left;vertical-align:top"
NUMBER = "padding:0 .5em;text-align:right;vertical-align:top;white-space:nowrap"
RULE = ";border-top:1px solid"


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str,
    texts: Collection[int] = (),
    sums: Collection[int] = (),
) -> str:
    """A table.

    Args:
        head: of each column.
        rows: of text.
        caption: what the table shows.
        texts: columns of text, to the left; numbers stand to the right.
        sums: rows with a rule above.
    """

    def line(cells: Sequence[str], tag: str, scope: str = "", rule: str = "") -> str:
        styles = (TEXT if column in texts else NUMBER for column in range(len(cells)))
        row = "".join(
            f"<{tag}{scope} style='{style}{rule}'>{html.escape(cell)}</{tag}>"
            for cell, style in zip(cells, styles, strict=True)
        )
        return f"<tr>{row}</tr>"

    body = "".join(line(row, "td", rule=RULE if number in sums else "") for number, row in enumerate(rows))
    top = f"<caption style='{CAPTION}'>{html.escape(caption)}</caption><thead>{line(head, 'th', ' scope=col')}</thead>"
    return f"<table style='{TABLE}'>{top}<tbody>{body}</tbody></table>"


def paragraph(*lines: str) -> str:
    """Lines of text."""
    return f"<p>{'<br>'.join(map(html.escape, lines))}</p>"


def listed(texts: Iterable[str]) -> str:
    """A list of texts; nothing where there are none."""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def preformatted(lines: Iterable[str]) -> str:
    """Lines of text in columns of their own."""
    text = "\n".join(lines)
    return f"<pre>{html.escape(text)}</pre>"
