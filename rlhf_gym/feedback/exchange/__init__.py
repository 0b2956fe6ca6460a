"""Feedback in and out of files, in the formats that the field uses."""
