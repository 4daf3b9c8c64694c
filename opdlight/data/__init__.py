"""What is rolled out: tasks, their mixture, and the batches of rollout requests."""

from opdlight.data.tasks import Task, TaskMixture

__all__ = ["Task", "TaskMixture"]
