"""What is measured of predictions, on the CPU in float64 and without a gradient."""
