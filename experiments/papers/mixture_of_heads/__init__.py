"""The parts of paper 54's rerun."""
