"""What `curate simulate` is made of: worlds, the rounds that are played in them, figures, verdicts and the page."""
