"""Triton-distributed: acquired, inspected, relabelled as `triton`, installed in stock's place."""
