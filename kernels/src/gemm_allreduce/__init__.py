"""Fused GEMM + all-reduce kernels in portable Triton.

Importing this package loads neither torch nor Triton. What is here:

* :mod:`gemm_allreduce.variants`: the compile-time variants, as plain data;
* :mod:`gemm_allreduce.layout`: where flags and slots lie in a rank's heap, as plain arithmetic;
* :mod:`gemm_allreduce.one_shot`: the Triton kernel (imports Triton);
* :mod:`gemm_allreduce.virtual_ranks`: runs all ranks in one launch on one GPU, for tests;
* :mod:`gemm_allreduce.compile`: ``python -m gemm_allreduce.compile``, cubins without a GPU.

There is no multi-GPU launcher, workspace, or loader of the cubins in this version.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
