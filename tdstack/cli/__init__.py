"""The verbs as Invoke tasks: parse, call tdstack, print."""
