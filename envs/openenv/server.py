"""What an OpenEnv server says of its environment before an episode begins (HTTP)."""

import logging
from functools import lru_cache
from typing import Any, NamedTuple

import httpx2

from opdlight.envs.openenv.session import Refused, Session, Unavailable, is_local, parse_json, reason, retry
from opdlight.errors import ConfigError, EnvError


class Tool(NamedTuple):
    """A tool of the environment, as MCP describes it."""

    name: str
    description: str
    input_schema: dict[str, Any]  # JSON schema of its arguments


class Description(NamedTuple):
    """What a server says of its environment."""

    text: str
    action: dict[str, Any]  # JSON schema of its actions
    tools: tuple[Tool, ...] | None  # None: its actions are no calls of tools


def check_url(url: str) -> str:
    """`url` as it is usually spelt, without a slash at its end; raises ConfigError unless it is an HTTP server's."""
    expected, got = "like http://host:8000, without user and password", url.rpartition("@")[2]
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ConfigError.wrong("url", expected=f"{expected} ({error})", got=got) from error
    port = 80 if parsed.port is None else parsed.port
    odd = parsed.userinfo or parsed.query or parsed.fragment or not 0 < port < 2**16
    if parsed.scheme not in ("http", "https") or not parsed.host or odd:
        raise ConfigError.wrong("url", expected=expected, got=got)
    return str(parsed).rstrip("/")


@lru_cache(maxsize=64)
def describe(url: str, timeout: float, retries: int) -> Description:
    """What the server says of its environment; asked once in a process.

    Raises:
        ConfigError: naming `url`, if there is no OpenEnv server.
    """
    schema = _http(url, "/schema", timeout, retries)
    action = schema.get("action") if isinstance(schema, dict) else None
    if not isinstance(action, dict):
        raise ConfigError.wrong("url", expected="the address of an OpenEnv server", got=f"{url}, without /schema")
    about = _http(url, "/metadata", timeout, retries)
    text = str(about.get("description") or "") if isinstance(about, dict) else ""
    fields = set(action.get("properties", {})) - {"metadata"}
    calls_tools = not fields or "tool_name" in fields  # OpenEnv's CallToolAction, or the bare Action of older ones
    tools = retry(lambda: _tools(url, timeout), url, retries)[0] if calls_tools else None
    return Description(text, action, tools)


@lru_cache(maxsize=64)
def number_of_tasks(url: str, split: str, key: str, timeout: float, retries: int) -> int:
    """How many tasks the environment has in a split, by OpenEnv's task API; asked once in a process.

    Raises:
        ConfigError: naming `key`, if the server has no such API or split.
    """
    reply = _http(url, "/list_environments", timeout, retries)
    if isinstance(reply, list) and reply:
        reply = _http(url, f"/{reply[0]}/num_tasks", timeout, retries, {"split": split})
    count = reply.get("num_tasks") if isinstance(reply, dict) else None
    if type(count) is not int or count < 1:
        expected = (
            f"a split of which {url} knows the number of tasks, by OpenEnv's task API (it answers {reply!r:.200})"
        )
        raise ConfigError.wrong(key, expected=expected, got=split)
    return count


def _tools(url: str, timeout: float) -> tuple[Tool, ...]:
    session = Session(url, timeout)
    session.open()
    try:
        reply = session.ask("mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}})
        found = [
            Tool(t["name"], t.get("description") or "", t.get("input_schema") or t.get("inputSchema") or {})
            for t in reply["result"]["tools"]
        ]
    except (Refused, EnvError, LookupError, TypeError) as error:
        raise ConfigError.wrong("url", expected=f"a server that lists its tools ({reason(error)})", got=url) from error
    finally:
        session.close()
    return tuple(found)


def _http(url: str, path: str, timeout: float, retries: int, body: Any = None) -> Any:
    """The JSON at a path; the reason of the server where it refuses."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every request

    def attempt() -> httpx2.Response:
        try:
            with httpx2.Client(timeout=timeout, trust_env=not is_local(url)) as client:
                response = client.request("GET" if body is None else "POST", url + path, json=body)
        except httpx2.TransportError as error:
            raise Unavailable(f"{path} gave no answer ({reason(error)})") from error
        if response.status_code >= 500 and response.status_code != 501:  # 501: not supported
            raise Unavailable(f"{path} answered {response.status_code}")
        return response

    return parse_json(retry(attempt, url, retries)[0].text)
