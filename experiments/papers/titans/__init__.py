"""The parts of paper 33's rerun: what is trained, what is measured of it, and the picture."""
