"""The parts of paper 58's rerun: the common form, recall by what is compared, and the picture."""
