"""The OCI distribution protocol (distribution-spec 1.1): documents and blobs of a registry."""
