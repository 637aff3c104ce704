"""Search for plans by measurement: refinement, and searches by evaluation to compare with."""
