"""Kinds of ranks. Imports nothing: a rank's process decides itself which package it loads."""

from __future__ import annotations

from typing import Literal

Kind = Literal["cpu", "virtual", "nvshmem", "symmetric"]
"""cpu: processes in Triton's interpreter. virtual: all ranks in one launch on one GPU. nvshmem
and symmetric: processes on GPUs, over NVSHMEM or PyTorch's symmetric memory."""
