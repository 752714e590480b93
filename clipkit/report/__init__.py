"""Reports made from result files alone: HTML pages that need no network, Markdown tables, model cards."""
