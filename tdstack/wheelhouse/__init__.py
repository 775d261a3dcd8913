"""Files from outside: fetched once, by hash, into a content-addressed store."""
