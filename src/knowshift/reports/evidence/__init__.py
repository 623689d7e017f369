"""What a run folder holds, read strictly and scored. Imports no claims."""
