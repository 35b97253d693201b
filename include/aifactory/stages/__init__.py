"""The stations of the line, each a few functions that a DAG's tasks call."""
