"""Tasks, their mixture, and the data set: its batches are lists of rollout requests."""

from opdlight.data.tasks import Task, TaskMixture

__all__ = ["Task", "TaskMixture"]
