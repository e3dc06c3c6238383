"""Images of any source into packed data sets (pipelines/sources/packed.py), and their examination."""
