"""tdstack: build, check, ship and install the GPU stack for tensor-parallel overlap."""

__version__ = "0.1.0"
