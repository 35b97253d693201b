"""The receiver of what KServe's agents log: requests and answers become the prediction log and a rollout's counts.

An agent stands before each model server and sends two events over HTTP for a request: one when it comes, one when it
was answered with 200. Nothing is sent of an answer with another status, so a failure is an event that does not come.

    agents ── POST /<line>/<version> ──▶ exchanges ──▶ receiving ──▶ spool ──▶ shipper ──▶ live/<line>/... in S3
                                                          └─────────────────────────────▶ serving/<line>/counts.json

What a rollout is judged on is then read as of the embedded plant (`aifactory.serving.evidence`).
"""
