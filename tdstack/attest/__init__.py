"""What vouches for an image: signatures, the bill of materials, provenance; and their checks."""
