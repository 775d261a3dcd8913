"""cloud-init: user data rendered from the cluster file."""
