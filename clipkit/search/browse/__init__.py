"""Local web page: search and curate the images of an index in a browser."""
