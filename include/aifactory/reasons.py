"""Why a production unit stopped: one code and one sentence each, the same in log, ledger and UI."""

from __future__ import annotations

from enum import StrEnum


class ReasonCode(StrEnum):
    """Reason codes of the ledger; `.sentence` says in plain words what happened."""

    sentence: str

    def __new__(cls, code: str, sentence: str) -> ReasonCode:
        """One member: its code is its value, the sentence goes with it."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        return member

    # --- raw material
    LANDING_MISSING = "LANDING_MISSING", "The source has delivered no file for this partition."
    LANDING_EMPTY = "LANDING_EMPTY", "The delivered file has no rows."
    LANDING_UNREADABLE = "LANDING_UNREADABLE", "The delivered file is truncated or is not parquet."
    COLUMN_MISSING = "COLUMN_MISSING", "A column that the line needs is not in the delivered file."
    COLUMN_TYPE = "COLUMN_TYPE", "A column has another type than the line declares."
    COLUMN_ALL_NULL = "COLUMN_ALL_NULL", "A column that must carry values is null on every row."
    VALUE_NULL = "VALUE_NULL", "A value that must be there is missing on this row."
    VALUE_OUT_OF_RANGE = "VALUE_OUT_OF_RANGE", "A value lies outside its possible range."
    VALUE_NOT_IN_SET = "VALUE_NOT_IN_SET", "A value is not one of those allowed."
    VALUE_FORMAT = "VALUE_FORMAT", "A value does not have the expected format."
    KEY_DUPLICATE = "KEY_DUPLICATE", "The key of this row occurs more than once in the partition."
    CROSS_COLUMN = "CROSS_COLUMN", "Columns of this row contradict each other."
    EVENT_TIME_OUTSIDE = "EVENT_TIME_OUTSIDE", "The event time lies outside the partition."
    VOLUME_ABNORMAL = "VOLUME_ABNORMAL", "The number of rows is far from that of recent partitions."
    FRESHNESS = "FRESHNESS", "The newest event of the batch is older than the partition should end with."
    QUARANTINE_SHARE = "QUARANTINE_SHARE", "More rows failed than the line tolerates, so the batch is held whole."
    GATE_BROKEN = "GATE_BROKEN", "The gate itself could not run, which counts as a failed gate."
    # --- features and datasets
    FEATURE_GATE = "FEATURE_GATE", "The built features break a rule of the feature gate."
    DATASET_CONFLICT = "DATASET_CONFLICT", "Other writers kept winning the race to commit a dataset version."
    DATASET_TOO_SMALL = "DATASET_TOO_SMALL", "There are fewer partitions than the line needs to train and hold out."
    DATASET_CORRUPT = "DATASET_CORRUPT", "Stored content does not match the hash that names it."
    # --- training and evaluation
    LOSS_NOT_FINITE = "LOSS_NOT_FINITE", "The training loss became NaN or infinite; training stopped before the step."
    TRAINING_FAILED = "TRAINING_FAILED", "The training program ended with an error of its own."
    PACKAGE_INVALID = "PACKAGE_INVALID", "The model package is incomplete or does not match its hashes."
    PACKAGE_MISMATCH = "PACKAGE_MISMATCH", "The packaged model does not give the outputs of the trained one."
    METRIC_BELOW_FLOOR = "METRIC_BELOW_FLOOR", "The primary metric is below the floor of the line."
    GAIN_NOT_PROVEN = "GAIN_NOT_PROVEN", "The challenger has not proved to be better than the champion."
    CALIBRATION = "CALIBRATION", "The predicted probabilities are further from the outcomes than allowed."
    SLICE_DROP = "SLICE_DROP", "A slice of the holdout became worse than its allowed drop."
    LATENCY_BUDGET = "LATENCY_BUDGET", "The model is slower than its latency budget."
    SIZE_BUDGET = "SIZE_BUDGET", "The model package is larger than its size budget."
    REFIT_DIVERGED = "REFIT_DIVERGED", "The model refitted on the newest data strays from the one that was blessed."
    # --- release and use
    VERSION_UNKNOWN = "VERSION_UNKNOWN", "No such model version is in the registry."
    NO_CHAMPION = "NO_CHAMPION", "The line has no model in service."
    NO_PREVIOUS = "NO_PREVIOUS", "There is no earlier champion to go back to."
    ROLLED_BACK = "ROLLED_BACK", "An operator took the champion back to an earlier version."
    PREDICTIONS_GATE = "PREDICTIONS_GATE", "The predictions break a rule of the prediction gate."
    # --- feedback
    FIRST_MODEL = "FIRST_MODEL", "The line has data and no model yet."
    DRIFT = "DRIFT", "Enough recent windows broke the limits of drift or of the live metric."
    CADENCE_DUE = "CADENCE_DUE", "The champion is as old as the line's cadence allows."
    OPERATOR = "OPERATOR", "An operator asked for it."
    # --- the plant
    SPEC_INVALID = "SPEC_INVALID", "The line's specification is not valid."
    STORE_UNREACHABLE = "STORE_UNREACHABLE", "A store did not answer in time."
    PROCESS_KILLED = "PROCESS_KILLED", "A process was killed from outside."
    OUT_OF_MEMORY = "OUT_OF_MEMORY", "A process needed more memory than it was given."
    DEADLINE_MISSED = "DEADLINE_MISSED", "A stage took longer than the line allows."
    # --- pods on a cluster
    CLUSTER_UNREACHABLE = "CLUSTER_UNREACHABLE", "The Kubernetes API did not answer."
    CLUSTER_DENIED = "CLUSTER_DENIED", "The Kubernetes API refused the plant's credentials, or does not allow this."
    POD_INVALID = "POD_INVALID", "The cluster does not accept the pod as it is described."
    POD_EVICTED = "POD_EVICTED", "The node ran short of a resource and put the pod out."
    POD_PREEMPTED = "POD_PREEMPTED", "The pod had to make room for one of higher priority."
    POD_DELETED = "POD_DELETED", "Somebody deleted the pod while it worked."
    NODE_LOST = "NODE_LOST", "The node that the pod ran on went away."
    IMAGE_UNKNOWN = "IMAGE_UNKNOWN", "There is no such image, or the cluster may not have it."
    IMAGE_PULL = "IMAGE_PULL", "The image could not be fetched; its registry may be away."
    SECRET_MISSING = "SECRET_MISSING", "A secret that the pod needs is not in its namespace."
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED", "The quota of the namespace is used up."
    REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE", "More is asked for than any node, or the quota, can ever give."
    NO_SUCH_NODE = "NO_SUCH_NODE", "No node has the labels that are asked for."
    START_TIMEOUT = "START_TIMEOUT", "The pod did not find a place, or did not start, in time."
    ORPHAN_REMOVED = "ORPHAN_REMOVED", "A pod that no task waits for any more was removed."
    INTERNAL = "INTERNAL", "The code failed in a way that nobody foresaw."
