"""What the router chose and where it was computed."""
