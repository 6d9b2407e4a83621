"""The parts of paper 06's rerun: models trained side by side, what is compared, exact lines, and the picture."""
