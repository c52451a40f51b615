"""How many latents the data support: candidates on the same data and seeds, compared in pairs."""

from vaentropy.selection.report import Candidate as Candidate
from vaentropy.selection.report import Selection as Selection
from vaentropy.selection.select import select as select
