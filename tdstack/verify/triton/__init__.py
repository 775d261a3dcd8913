"""Exactly one Triton: who owns which file, what that means, and one swap that mends it."""
