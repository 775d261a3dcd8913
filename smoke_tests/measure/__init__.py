"""Times the fused kernels against what serving engines do without them; docs/performance.md."""
