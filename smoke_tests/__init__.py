"""Checks of the fused kernels, run on ranks of every kind; see docs/smoke.md."""
