"""One file per stage, its function named after it; the table is `hawq.experiment.table`."""
