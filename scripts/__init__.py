"""Commands, and the modules that a long one is made of. A package, so that no other of this name is found instead."""
