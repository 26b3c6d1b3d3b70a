"""Amazon's reviews of 2014 as a shop: Beauty, or another category."""
