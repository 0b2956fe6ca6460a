"""Studies with people: participants, the queue of questions, and the agreement of answers."""
