"""The steps. Each says what it was at the time, and is never changed afterwards."""
