"""What ``tools/*.py`` call."""
