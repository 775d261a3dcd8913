"""Kubernetes: manifests rendered from the cluster file, and the agent that judges a node."""
