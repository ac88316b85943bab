"""The graph and the face: recipes, stages, the command line, the report. No tensors, no SSH, no maths."""
