"""What a host has and lacks for the stack: facts, and checks that judge them.

The modules of facts (`facts`, `load`, `scrub`, `collect`, `probes`) use the standard library and,
where it is installed, pynvml, so that any Python can record a host.
"""
