"""A finding of the audit: what was seen where, and the command that mends it."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be. subject: the id or file in question, empty if it is the whole table."""

    severity: Severity
    check: str
    table: str
    subject: str
    seen: str
    repair: str
