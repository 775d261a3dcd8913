"""SGLang's tensor-parallel overlap, as a plug-in: no fork, one hook.

`plugin.register` is the entry point (group ``sglang.srt.plugins``). docs/sglang.md says how it is
switched on, what it takes and when it declines. Importing this imports neither SGLang nor torch.

| module | holds |
|---|---|
| `settings` | the environment variables |
| `conditions` | what declines a server, a layer, a call: data and pure functions |
| `facts` | reads SGLang's configuration and model into that data; names that moved |
| `boundary` | the fused path of one stage: its projection and its stage boundary |
| `arm` | all stages or none, alike on all ranks |
| `counters` | fused and native calls |
| `plugin` | the entry point and its hook |
| `bench_one_batch` | SGLang's one-batch benchmark, native and with overlap |
"""
