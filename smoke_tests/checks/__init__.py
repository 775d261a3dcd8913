"""The checks, each named by what it proves."""
