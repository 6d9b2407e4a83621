"""The parts of paper 20's rerun."""
