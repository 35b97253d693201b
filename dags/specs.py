"""Every line's spec, checked: a bad `line.yaml` shows as the import error of this file (no Airflow DAG comes from it).

The message names the file, each wrong field and its value. The other lines go on. `make check` says the same.
"""

from orchestration.defaults import report_bad_specs

report_bad_specs()
