"""A fake of Ray in one process: a test decides when an actor replies and when it dies."""

from collections import deque
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, Literal

from tests.rollout.slow_engine import Died

Fate = Literal["answers", "waits", "is out of reach", "dies before", "dies after"]


class RayError(Exception):
    """An actor cannot answer."""


class RayTaskError(RayError):
    """An actor's method has raised."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Ref:
    """A value in the object store."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Call:
    """An answer to come."""

    def __init__(self, method: str, arguments: tuple[Any, ...]) -> None:
        self.method, self.arguments = method, arguments
        self.answered = False
        self.value: Any = None
        self.error: RayError | None = None

    def answer(self, value: Any = None, error: RayError | None = None) -> None:
        self.answered, self.value, self.error = True, value, error


class Handle:
    """An actor; calls are answered in order."""

    def __init__(self, number: int, actor: Any) -> None:
        self.number, self.actor, self.alive = number, actor, True
        self.calls: deque[Call] = deque()
        self.asked: list[str] = []  # every method ever called

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self._ask(method, arguments))

    def _ask(self, method: str, arguments: tuple[Any, ...]) -> Call:
        self.asked.append(method)
        self.calls.append(call := Call(method, arguments))
        if not self.alive:
            self.end()
        return call

    def end(self) -> None:
        self.alive = False
        while self.calls:
            self.calls.popleft().answer(error=RayError(f"actor {self.number} is dead"))

    def go_on(self, fate: Fate) -> None:
        """Answer the oldest call, or die."""
        if fate == "waits" or not self.calls:
            return None
        if fate == "dies before":
            return self.end()
        if fate == "is out of reach":
            return self.calls.popleft().answer(error=RayError(f"actor {self.number} cannot be reached"))
        call = self.calls[0]
        arguments = [a.value if isinstance(a, Ref | Call) else a for a in call.arguments]
        try:
            value = getattr(self.actor, call.method)(*arguments)
        except Died:
            return self.end()
        except Exception as error:  # noqa: BLE001 (Ray hands on whatever an actor raises)
            self.calls.popleft().answer(error=RayTaskError(error))
            return None
        if fate == "dies after":
            return self.end()
        self.calls.popleft().answer(value)
        return None


class FakeRay:
    """What `RayEngine` uses of the module `ray`. `fate(handle, method)` decides about each call that is due."""

    gpus = 0

    def __init__(self, fate: Callable[[Handle, str], Fate] = lambda handle, method: "answers", cpus: float = 8) -> None:
        self.fate, self.cpus = fate, cpus
        self.handles: list[Handle] = []
        self.names: dict[str, Handle] = {}
        self.puts = 0
        self.initialised = False
        self.rounds = 0
        self.broken = {"auto"}  # addresses that do not answer
        self.address: str | None = None
        self.util = SimpleNamespace(get_node_ip_address=lambda: "node")
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def is_initialized(self) -> bool:
        return self.initialised

    def init(self, *, address: str, **ignored: Any) -> None:
        if address in self.broken:
            raise OSError(f"Ray does not start: {address}")
        self.initialised, self.address = True, address

    def shutdown(self) -> None:
        self.initialised = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.cpus, "GPU": self.gpus}

    available_resources = cluster_resources

    def remote(self, actor_class: type) -> Any:
        def make(name: str) -> Handle:
            self.handles.append(handle := Handle(len(self.handles), actor_class()))
            self.names[name] = handle
            return handle

        return SimpleNamespace(options=lambda name, **ignored: SimpleNamespace(remote=lambda: make(name)))

    def get_actor(self, name: str, namespace: str) -> Handle:
        if not self.names[name].alive:
            raise ValueError(f"no actor is called {name}")
        return self.names[name]

    def put(self, value: Any) -> Ref:
        self.puts += 1
        return Ref(value)

    def wait(self, calls: Iterable[Call], *, timeout: float, num_returns: int = 1) -> tuple[list[Call], list[Call]]:
        calls = list(calls)
        if timeout > 0 and not any(call.answered for call in calls):
            self._go_on()
        answered = [call for call in calls if call.answered][:num_returns]
        return answered, [call for call in calls if call not in answered]

    def get(self, call: Call) -> Any:
        while not call.answered:
            self._go_on()
        if call.error is not None:
            raise call.error
        return call.value

    def kill(self, handle: Handle) -> None:
        handle.end()

    def _go_on(self) -> None:
        self.rounds += 1
        assert self.rounds < 10_000, "the pool waits for ever"
        for handle in list(self.handles):
            if handle.calls:
                handle.go_on(self.fate(handle, handle.calls[0].method))
