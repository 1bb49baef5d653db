"""A FastMCP server whose tools run as tasks of io.modelcontextprotocol/tasks: tasks_server.py PORT."""
import asyncio
import sys

from fastmcp import Context, FastMCP
from fastmcp_tasks import TasksExtension
from mcp_types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

server = FastMCP("tasks")
server.add_extension(TasksExtension())


@server.tool(task=True)
async def crunch(data: str) -> str:
    """Takes its time."""
    return f"crunched {data}"


@server.tool(task=True)
async def ask(ctx: Context) -> str | InputRequiredResult:
    """Asks for a name on the way."""
    if not ctx.input_responses:
        schema = {"type": "object", "properties": {"value": {"type": "string"}}, "required": ["value"]}
        question = ElicitRequest(params=ElicitRequestFormParams(message="Who?", requested_schema=schema))
        return InputRequiredResult(input_requests={"who": question}, request_state="asked")
    return f"hello {ctx.input_responses['who'].content['value']}"


@server.tool(task=True)
async def hang() -> str:
    """Has to be cancelled."""
    await asyncio.sleep(3600)
    return "never"


if __name__ == "__main__":
    server.run(transport="http", host="localhost", port=int(sys.argv[1]), show_banner=False)
