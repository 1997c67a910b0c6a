"""The health of a path, as a table: what happened to it, and whether it is used then.

    GOOD      it answered, or was identified, since anything else happened
    DEGRADED  it did not answer, or its whole target fell silent: used only while no path of the target is good
    CUT       its link is down, or the path was dropped: what was sent there is lost; used only if there is nothing else

What always holds: ``core.path.Path.take`` is the only writer.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Health(Enum):
    GOOD = "good"
    DEGRADED = "degraded"
    CUT = "cut"


class Sign(Enum):
    ANSWER = "it answered a command"
    IDENTITY = "the target was identified on it"
    TIMEOUTS = "several timeouts in a row, or a long one, while the target has other paths"
    SILENCE = "its target fell silent: each path must be identified again before it is good"
    CUT = "its link went down, or it was dropped"


#: Where a sign leads; a health that is not listed for it stays as it is.
TRANSITIONS: Final[dict[Sign, dict[Health, Health]]] = {
    Sign.ANSWER: dict.fromkeys(Health, Health.GOOD),
    Sign.IDENTITY: dict.fromkeys(Health, Health.GOOD),
    Sign.TIMEOUTS: {Health.GOOD: Health.DEGRADED},
    Sign.SILENCE: {Health.GOOD: Health.DEGRADED},
    Sign.CUT: dict.fromkeys(Health, Health.CUT),
}
