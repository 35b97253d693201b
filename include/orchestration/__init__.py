"""The only code that knows Airflow: assets, schedules, retries, deadlines, forms, links, stations."""
