"""One file that carries an image, or all that it is built from, to a host without a network."""
