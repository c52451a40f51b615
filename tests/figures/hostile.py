"""Names of features, from data that someone else wrote; each is drawn letter by letter."""

HOSTILE = ("$x_1^", "<script>alert(1)</script>", "a\nb", r"\frac{", "x" * 100, "%s & {0}")


def holds_hostile(svg: str) -> bool:
    """Whether a figure shows these names as text, cut to a length."""
    shown = ("$x_1^", "&lt;script&gt;alert(1)", r"a\nb", r"\frac{", "x" * 23 + "…", "%s &amp; {0}")
    return all(name in svg for name in shown) and "<script" not in svg and "x" * 25 not in svg
