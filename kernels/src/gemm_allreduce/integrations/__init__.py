"""The operator in other packages' models. Importing this imports none of them.

| module | what it adds |
|---|---|
| `conditions` | when a layer, and when a call, takes the fused path; pure |
| `transformers` | the parallel style `gemm_allreduce_rowwise` |
| `sglang` | SGLang's tensor-parallel overlap, as a plug-in |
"""
