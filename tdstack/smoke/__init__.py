"""`invoke smoke`: runs the checks, and shows what they found."""
