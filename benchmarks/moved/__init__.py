"""Networks that move, fold and turn what they look at, composed at random; the place of the evidence is known."""
