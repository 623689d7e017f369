"""Tables, figures and findings from the records of a study. torch stays out."""
