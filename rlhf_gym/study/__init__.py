"""Studies with people: who takes part, who is asked what, and how far the answers agree."""
