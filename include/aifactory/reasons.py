"""Why a production unit stopped: one code and one sentence each, the same in log, ledger and UI."""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """What a reason counts against."""

    DEFECT = "defect"
    """Bad data, bad model, bad code: against yield."""
    INFRASTRUCTURE = "infrastructure"
    """The world around the work: against availability."""
    DECISION = "decision"
    """The word of a rule or a person about work that is as it should be: against neither."""


class ReasonCode(StrEnum):
    """Reason codes of the ledger; `.sentence` says in plain words what happened, `.cause` what it counts against."""

    sentence: str

    def __new__(cls, code: str, sentence: str) -> ReasonCode:
        """One member: its code is its value, the sentence goes with it."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        return member

    @property
    def cause(self) -> Cause:
        """What it counts against; a reason that is not told apart below is a defect."""
        if self in _INFRASTRUCTURE:
            return Cause.INFRASTRUCTURE
        return Cause.DECISION if self in _DECISIONS else Cause.DEFECT

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
    PACKAGE_UNSIGNED = "PACKAGE_UNSIGNED", "The model package does not carry a valid signature of this plant."
    SIGNING_KEY_MISSING = "SIGNING_KEY_MISSING", "The plant has no key to sign packages with."
    PACKAGE_MISMATCH = "PACKAGE_MISMATCH", "The packaged model does not give the outputs of the trained one."
    METRIC_BELOW_FLOOR = "METRIC_BELOW_FLOOR", "The primary metric is below the floor of the line."
    GAIN_NOT_PROVEN = "GAIN_NOT_PROVEN", "The challenger has not proved to be better than the champion."
    CALIBRATION = "CALIBRATION", "The predicted probabilities are further from the outcomes than allowed."
    SLICE_DROP = "SLICE_DROP", "A slice of the holdout became worse than its allowed drop."
    LATENCY_BUDGET = "LATENCY_BUDGET", "The model is slower than its latency budget."
    SIZE_BUDGET = "SIZE_BUDGET", "The model package is larger than its size budget."
    REFIT_DIVERGED = "REFIT_DIVERGED", "The model refitted on the newest data strays from the one that was blessed."
    # --- edge package
    EDGE_NOT_QUANTISABLE = "EDGE_NOT_QUANTISABLE", "Nothing in the model's graph can be quantised: no edge package."
    EDGE_ACCURACY = "EDGE_ACCURACY", "The int8 model loses more of the primary metric than allowed."
    EDGE_CALIBRATION = "EDGE_CALIBRATION", "The int8 model's probabilities are worse calibrated than allowed."
    EDGE_SCORES = "EDGE_SCORES", "The int8 model's scores lie further from the full model's than allowed."
    EDGE_SIZE = "EDGE_SIZE", "The int8 model saves less of the size than demanded."
    EDGE_LATENCY = "EDGE_LATENCY", "The int8 model is slower than its latency budget."
    # --- release and use
    VERSION_UNKNOWN = "VERSION_UNKNOWN", "No such model version is in the registry."
    NO_CHAMPION = "NO_CHAMPION", "The line has no model in service."
    NO_PREVIOUS = "NO_PREVIOUS", "There is no earlier champion to go back to."
    ROLLED_BACK = "ROLLED_BACK", "An operator took the champion back to an earlier version."
    LIVE_BREACH = "LIVE_BREACH", "Soon after its promotion the champion broke a limit on answers to callers."
    PREDICTIONS_GATE = "PREDICTIONS_GATE", "The predictions break a rule of the prediction gate."
    # --- rollout
    APPROVAL_WAITING = "APPROVAL_WAITING", "A release waits for a person's word."
    APPROVAL_REJECTED = "APPROVAL_REJECTED", "A person, or nobody in time, refused the release."
    CANARY_ERRORS = "CANARY_ERRORS", "The challenger fails more requests than the champion, by more than allowed."
    CANARY_SLOW = "CANARY_SLOW", "The challenger is slower than the champion, by more than allowed."
    CANARY_SCORES_SHIFTED = (
        "CANARY_SCORES_SHIFTED",
        "The challenger's scores lie further from the champion's than allowed.",
    )
    SHADOW_MISMATCH = "SHADOW_MISMATCH", "The challenger scores the same requests otherwise than allowed."
    NO_TRAFFIC = "NO_TRAFFIC", "There were fewer requests than a comparison needs."
    NOT_PROVEN = "NOT_PROVEN", "Traffic has shown in time neither harm nor that there is none."
    CHALLENGER_SILENT = "CHALLENGER_SILENT", "Far fewer requests reach the challenger than its share of the traffic."
    CHALLENGER_LOST = "CHALLENGER_LOST", "The challenger left its slot while it was being tried."
    CHAMPION_LOST = "CHAMPION_LOST", "The champion is not in its slot; nothing goes on until it is back."
    ROLLOUT_STUCK = "ROLLOUT_STUCK", "A step of the rollout was not in force in time."
    ROLLOUT_RUNNING = "ROLLOUT_RUNNING", "Another rollout of the line is under way."
    ROLLOUT_SUPERSEDED = "ROLLOUT_SUPERSEDED", "A newer candidate, or an operator, took the place of this one."
    ROLLOUT_ABORTED = "ROLLOUT_ABORTED", "The rollout was ended before it was decided."
    TRAFFIC_INVALID = "TRAFFIC_INVALID", "The document that says what serves cannot be read."
    # --- feedback
    FIRST_MODEL = "FIRST_MODEL", "The line has data and no model yet."
    DRIFT = "DRIFT", "Enough recent windows broke the limits of drift or of the live metric."
    LIVE_DECAY = "LIVE_DECAY", "Enough recent windows broke a limit, counting those of answers to callers."
    CADENCE_DUE = "CADENCE_DUE", "The champion is as old as the line's cadence allows."
    OPERATOR = "OPERATOR", "An operator asked for it."
    # --- the plant
    SPEC_INVALID = "SPEC_INVALID", "The line's specification is not valid."
    GATEWAY_UNREACHABLE = "GATEWAY_UNREACHABLE", "The gateway's admin interface did not answer."
    STORE_UNREACHABLE = "STORE_UNREACHABLE", "A store did not answer in time."
    SERVER_UNREACHABLE = "SERVER_UNREACHABLE", "A model server did not answer in time."
    PROCESS_KILLED = "PROCESS_KILLED", "A process was killed from outside."
    OUT_OF_MEMORY = "OUT_OF_MEMORY", "A process needed more memory than it was given."
    DEADLINE_MISSED = "DEADLINE_MISSED", "A stage took longer than the line allows."
    CHANNEL_FAILED = "CHANNEL_FAILED", "A channel did not take a notice."
    # --- placement
    NO_PLACE = "NO_PLACE", "No cluster may or can take this work within its deadline."
    # --- stock of compute
    STOCK_DIFFERS = "STOCK_DIFFERS", "A cluster has more or fewer units than the inventory declares."
    STOCK_ABSURD = "STOCK_ABSURD", "What a cluster says of its stock cannot be true."
    POOLS_DENIED = "POOLS_DENIED", "Airflow does not let the plant keep its pools."
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


_INFRASTRUCTURE = frozenset(
    {
        ReasonCode.DATASET_CONFLICT,
        ReasonCode.CHALLENGER_SILENT,
        ReasonCode.CHALLENGER_LOST,
        ReasonCode.CHAMPION_LOST,
        ReasonCode.ROLLOUT_STUCK,
        ReasonCode.GATEWAY_UNREACHABLE,
        ReasonCode.STORE_UNREACHABLE,
        ReasonCode.SERVER_UNREACHABLE,
        ReasonCode.PROCESS_KILLED,
        ReasonCode.OUT_OF_MEMORY,
        ReasonCode.DEADLINE_MISSED,
        ReasonCode.CHANNEL_FAILED,
        ReasonCode.NO_PLACE,
        ReasonCode.STOCK_DIFFERS,
        ReasonCode.STOCK_ABSURD,
        ReasonCode.POOLS_DENIED,
        ReasonCode.CLUSTER_UNREACHABLE,
        ReasonCode.CLUSTER_DENIED,
        ReasonCode.POD_EVICTED,
        ReasonCode.POD_PREEMPTED,
        ReasonCode.POD_DELETED,
        ReasonCode.NODE_LOST,
        ReasonCode.IMAGE_UNKNOWN,
        ReasonCode.IMAGE_PULL,
        ReasonCode.SECRET_MISSING,
        ReasonCode.SIGNING_KEY_MISSING,
        ReasonCode.QUOTA_EXCEEDED,
        ReasonCode.REQUEST_TOO_LARGE,
        ReasonCode.NO_SUCH_NODE,
        ReasonCode.START_TIMEOUT,
    }
)
_DECISIONS = frozenset(
    {
        ReasonCode.APPROVAL_WAITING,
        ReasonCode.NO_TRAFFIC,
        ReasonCode.ROLLOUT_RUNNING,
        ReasonCode.ROLLOUT_SUPERSEDED,
        ReasonCode.ROLLOUT_ABORTED,
        ReasonCode.FIRST_MODEL,
        ReasonCode.DRIFT,
        ReasonCode.CADENCE_DUE,
        ReasonCode.OPERATOR,
        ReasonCode.ORPHAN_REMOVED,
    }
)
