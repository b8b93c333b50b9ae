"""What comes out: the verdict, figures, the report."""
