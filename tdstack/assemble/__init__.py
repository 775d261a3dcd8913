"""Layers as bytes: pinned files in, one deterministic tar and its digest out.

Nothing is executed and no engine takes part, so a layer's bytes depend on the lock and the
recipes alone, on whatever machine and under whatever engine it is built.
"""
