"""Reports built only from result files: HTML pages that need no network, Markdown tables, and model cards."""
