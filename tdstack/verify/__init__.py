"""tdstack-verify: does an environment hold what it should, and if not, what mends it.

The standard library alone, Python 3.11 and later: this package is copied into every image as
/opt/tdstack/lib/tdstack_verify, and runs from a checkout as scripts/tdstack-verify.
"""
