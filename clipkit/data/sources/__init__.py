"""Where data comes from: a file here for each kind of source, and rows by role from all of them."""
