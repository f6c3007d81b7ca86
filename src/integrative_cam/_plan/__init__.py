"""What a network is, worked out once: taps, bias sites, where they lie, and who depends on whom."""
