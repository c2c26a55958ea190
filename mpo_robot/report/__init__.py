"""Reading back what a run and its episode logs left behind, and one HTML page about it. No torch."""
