"""What a run folder holds, read strictly and scored. Claims stay out."""
