"""The kernels' compiler on this host: which files, in an environment of their own, run how."""
