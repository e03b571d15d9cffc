"""Conversations: OpenAI's {role, content} and ShareGPT's {from, value}, checked turn by turn."""

from typing import Any

from featherweight.core.errors import Problem, did_you_mean
from featherweight.data.jsons import short

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "assistant",
    "bot": "assistant",
}


def chat(value: Any, where: str) -> tuple[list[Problem], tuple[Message, ...]]:
    """The problems of a conversation and its messages as {role, content, …}."""
    if not isinstance(value, list) or not value:
        got = "nothing" if value is None else short(value)
        return [Problem("not a conversation", where, "a list of {role, content}", got)], ()
    problems: list[Problem] = []
    turns = [message(item, f"{where}[{i}]", problems) for i, item in enumerate(value)]
    if not problems:
        problems = order(turns, where)
    return problems, tuple(turns)


def message(item: Any, where: str, problems: list[Problem]) -> Message:
    """One message; ShareGPT's names become OpenAI's, other keys (tool_calls, name) are kept."""
    if not isinstance(item, dict):
        problems.append(Problem("not a message", where, "{role, content}", short(item)))
        return {}
    item = {{"from": "role", "value": "content"}.get(k, k): v for k, v in item.items()}
    role = SHAREGPT.get(item.get("role", ""), item.get("role")) if isinstance(item.get("role"), str) else None
    if role not in ROLES:
        fix = did_you_mean(role, [*ROLES, *SHAREGPT]) if role else ""
        problems.append(Problem("unknown role", f"{where}.role", ", ".join(ROLES), short(item.get("role")), fix))
    content = item.get("content")
    if not isinstance(content, str) and not (content is None and item.get("tool_calls")):
        problems.append(Problem("wrong type", f"{where}.content", "text", short(content)))
    elif role in ("user", "assistant") and not item.get("tool_calls") and not str(content).strip():
        problems.append(Problem("empty text", f"{where}.content", "text", short(content)))
    return {**item, "role": role}


def order(turns: list[Message], where: str) -> list[Problem]:
    """System first and once; user and assistant in turns (tool results may stand between); someone answers."""
    problems = []
    roles = [t["role"] for t in turns]
    for i, role in enumerate(roles):
        if role in ("system", "developer") and i:
            problems.append(Problem("system message in the middle", f"{where}[{i}].role", "at most one, first", role))
        before = roles[i - 1] if i else ""
        if role == before and role in ("user", "assistant") and not turns[i - 1].get("tool_calls"):
            problems.append(Problem("roles do not alternate", f"{where}[{i}].role", other(role), role))
    spoken = [r for r in roles if r in ("user", "assistant")]
    if spoken[:1] == ["assistant"]:
        problems.append(Problem("the assistant speaks first", where, "a user message before it", "assistant"))
    if "user" not in roles:
        problems.append(Problem("no user message", where, "at least one", ", ".join(roles)))
    return problems[:1] if "user" not in roles and spoken else problems


def other(role: str) -> str:
    return "assistant" if role == "user" else "user"
