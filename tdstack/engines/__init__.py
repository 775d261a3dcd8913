"""Container engines: where images are kept and run. What goes into them is made elsewhere."""
