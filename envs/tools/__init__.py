"""Tools that a policy may call: what a call looks like, a calculator, a search, Python in a sandbox."""

from rlhf_gym.envs.tools.calculator import calculate, calculator_tool
from rlhf_gym.envs.tools.call_format import CallFormat, MalformedCall, ToolCall
from rlhf_gym.envs.tools.document_search import DocumentSearch, search_tool
from rlhf_gym.envs.tools.sandbox import PythonSandbox, python_tool
from rlhf_gym.envs.tools.tool import Tool, ToolError, as_tools

__all__ = [
    "CallFormat",
    "DocumentSearch",
    "MalformedCall",
    "PythonSandbox",
    "Tool",
    "ToolCall",
    "ToolError",
    "as_tools",
    "calculate",
    "calculator_tool",
    "python_tool",
    "search_tool",
]
