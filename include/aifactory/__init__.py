"""The factory itself: plain Python that never imports Airflow, and what runs inside training processes."""
