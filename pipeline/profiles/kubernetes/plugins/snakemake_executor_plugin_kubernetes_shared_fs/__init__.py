"""Snakemake's Kubernetes executor for a volume that every pod and the submitting machine see under one path.

The executor itself assumes that nothing is shared, and would carry every input and output through a storage provider:
then a training checkpoint, which is neither, were lost with its pod. Here the folder of runs is the shared one.
"""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from snakemake_executor_plugin_kubernetes import Executor as _Executor
from snakemake_executor_plugin_kubernetes import ExecutorSettings as ExecutorSettings
from snakemake_executor_plugin_kubernetes import common_settings as _settings

common_settings = dataclasses.replace(
    _settings, implies_no_shared_fs=False, job_deploy_sources=False, auto_deploy_default_storage_provider=False
)


class Executor(_Executor):  # type: ignore[misc, unused-ignore]  # its base is there after setup-cluster alone
    """Pods that work in the folder of runs."""

    def get_job_exec_prefix(self, job: Any) -> str:
        """Pods start elsewhere."""
        return f"cd {shlex.quote(self.workflow.workdir_init)}"

    def run_job(self, job: Any) -> None:
        """Within the minutes (`runtime`) that the job's rule has, of which the executor itself takes no notice."""
        minutes, create = job.resources.get("runtime"), self.batchapi.create_namespaced_job

        def created(namespace: str, body: Any) -> Any:
            body.spec.active_deadline_seconds = 60 * int(minutes)
            return create(namespace, body)

        if minutes:
            self.batchapi.create_namespaced_job = created
        try:
            super().run_job(job)
        finally:
            self.batchapi.create_namespaced_job = create
