"""What a study with people knows: who takes part, who is asked what, and how far the answers agree."""
