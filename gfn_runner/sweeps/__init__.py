"""Many runs as one sweep: planned, launched, recorded."""
