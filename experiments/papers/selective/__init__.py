"""The parts of paper 23's rerun: videos of digits, the classifiers that are compared, and pictures."""
