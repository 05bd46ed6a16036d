import pytest

from store.licence import FORBIDDEN, OPEN, UNKNOWN, judged


@pytest.mark.parametrize(
    "license",
    ["CC0-1.0", "cc-by-4.0", "CC BY-SA 4.0", "cc-by-nc-4.0", "cc-by-nc-sa-3.0-de", "MIT", "Apache-2.0", "bsd-3-clause",
     "Public Domain", "ODC-By", "cdla-permissive-2.0", "Apache License 2.0".replace(" License", "")],
)  # fmt: skip
def test_open(license):
    assert judged(license) == OPEN


@pytest.mark.parametrize(
    "license",
    ["cc-by-nd-4.0", "CC BY-NC-ND 4.0", "Proprietary", "All rights reserved", "internal use", "no redistribution",
     "MIT, but confidential"],
)  # fmt: skip
def test_forbidden(license):
    assert judged(license) == FORBIDDEN


@pytest.mark.parametrize("license", [None, "", "other", "ask legal", "Pexels License", "mit-like", "cc-by-fun"])
def test_unknown(license):
    assert judged(license) == UNKNOWN
