"""Licences of clips, as their sources state them: whether they let one pass the clips on."""

import re

OPEN, FORBIDDEN, UNKNOWN = "open", "forbidden", "unknown"
# By the Hub's and SPDX' ids, whatever their case and punctuation; `nc` restricts use, not passing on.
_OPEN = re.compile(
    r"(cc0|cc-by(-nc)?(-sa)?|pddl|odc-by|odbl|cdla-(permissive|sharing)|apache|mit|mit-0|bsd(-[0-9]-clause)?|isc|unlicense"
    r"|public-domain|publicdomain|cc-public-domain|pd|wtfpl|0bsd|zlib|openrail|mpl|gfdl)(-v?[0-9]+(-[0-9]+)*(-[a-z]{2,3})?)?"
)
# What is published is cut, scaled and played backwards: a licence without derivatives (nd) does not let that pass.
_FORBIDDEN = re.compile(
    r"(^|-)(nd|noderivs|no-derivatives|no-redistribution|not-redistribut\w*|no-distribution|proprietary|confidential"
    r"|internal|all-rights-reserved|copyrighted)(-|$)"
)


def judged(license: str | None) -> str:
    """OPEN, FORBIDDEN, or UNKNOWN for no licence and for one that nobody here knows."""
    if license is None:
        return UNKNOWN
    plain = re.sub(r"[^a-z0-9]+", "-", license.lower()).strip("-")
    if _FORBIDDEN.search(plain):
        return FORBIDDEN
    return OPEN if _OPEN.fullmatch(plain) else UNKNOWN
