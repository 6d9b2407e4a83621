"""The parts of paper 41's rerun: what is trained, what is measured of it, and the pictures."""
