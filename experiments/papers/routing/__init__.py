"""The parts of paper 55's rerun."""
