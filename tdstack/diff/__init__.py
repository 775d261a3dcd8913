"""What differs between two images, locks or containers, and whether a rebuild gives one again."""
