"""The peer's side of the conversation: it imports nothing but what every Python has, and runs in the peer's process."""

import json
import sys
from collections.abc import Callable

__all__ = ["serve"]


def serve(measure: Callable[[int, int], float], **versions: str) -> None:
    """Answer requests on stdin, one JSON object a line, until it is closed.

    The first line on stdout says that the peer is ready, and its versions; then each request
    `{"batch_size": 64, "steps": 100}` gets `{"seconds_per_step": 0.001}`. What libraries print goes to stderr.

    Args:
        measure: (batch_size, steps) to seconds per step.
        versions: of what is measured.
    """
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(**message: object) -> None:
        print(json.dumps(message), file=answers, flush=True)

    answer(versions=versions)
    for line in sys.stdin:
        request = json.loads(line)
        answer(seconds_per_step=measure(request["batch_size"], request["steps"]))
