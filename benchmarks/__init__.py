"""Programs that measure fxopt, or make what it ships."""
