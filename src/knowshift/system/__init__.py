"""The machine, Python, and private parts of libraries. Facts and models stay out."""
