"""The parts of paper 32's rerun: where attention gathers, what calibration does to a classifier, and the picture."""
