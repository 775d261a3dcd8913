"""Exactly one NVSHMEM: host library, wheel metadata and device bitcode agree."""
