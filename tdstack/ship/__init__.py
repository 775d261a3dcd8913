"""Images to and from a registry: push, pull, the cache of layers for builds, prune."""
