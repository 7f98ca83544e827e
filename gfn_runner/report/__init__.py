"""Tables and figures, made from what a run left in its folder."""
