"""The parts of paper 48's rerun: what is trained in its four settings, and what reading costs."""
