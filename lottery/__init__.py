"""What the stages share: training under masks, pruning, tickets and their comparison."""
