"""The parts of paper 40's rerun: documents of six kinds, the picture."""
