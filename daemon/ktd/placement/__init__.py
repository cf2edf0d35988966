"""Which experts are in GPU slots, and how that changes while requests run."""
