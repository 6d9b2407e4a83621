"""The parts of paper 52's rerun: what is trained, plain recurrences, what is measured, and the picture."""
