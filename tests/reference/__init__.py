"""Every formula of the method a second time: slow loops over float64 arrays, written from its definition alone.

No torch inside a formula and nothing from `integrative_cam`: what agrees with these twins agrees by mathematics.
One sample at a time: an activation is (channel, *space), a map is (*space).
"""
