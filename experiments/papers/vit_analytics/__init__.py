"""The parts of paper 47's rerun: photos and what they are attended by, the atlas of patterns, and the picture."""
