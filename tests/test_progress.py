"""What a caller counts by, and what reports progress, are told the same units."""

from vaentropy.progress import counting, no_progress, reporting


def test_units_of_work_go_both_ways_and_notes_go_nowhere():
    units, told = [], []
    report = reporting(units.append)
    report()
    report("a note", 30)
    report("a note alone", 0)
    report("", -30)  # of a worker that was lost
    counting(lambda note="", /, advance=1: told.append((note, advance)))(7)
    assert units == [1, 30, -30] and told == [("", 7)]
    assert reporting(None) is no_progress and no_progress("a note", 3) is None
