"""What can be typed: options and help only; the work is imported when a command runs."""
