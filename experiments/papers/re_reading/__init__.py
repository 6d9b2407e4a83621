"""The parts of paper 44's rerun: sizes, what is trained and what is said of it, the picture."""
