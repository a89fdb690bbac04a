"""In which order things run: Prefect flows that read like tables of contents, with the console command beside them."""
