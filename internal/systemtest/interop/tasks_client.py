"""FastMCP's client of io.modelcontextprotocol/tasks."""
import asyncio
import os

from fastmcp import Client
from fastmcp_tasks import call_tool_task


def check(name, ok, seen=None):
    if not ok:
        raise SystemExit(f"{name}: saw {seen!r}")
    print(f"ok {name}", flush=True)


async def main():
    async def on_elicit(message, response_type, params, context):
        return {"value": "Ada"}

    async with Client(os.environ["STATELESS_URL"], mode="2026-07-28", elicitation_handler=on_elicit) as client:
        tools = [t.name for t in await client.list_tools()]
        check("lists tools of both targets", {"one_crunch", "two_crunch"} <= set(tools), tools)
        for target in ("one", "two"):
            result = await client.call_tool(f"{target}_crunch", {"data": target})
            check(f"{target}: a call that is a task comes to its result", result.content[0].text == f"crunched {target}", result)
            task = await call_tool_task(client, f"{target}_crunch", {"data": "again"})
            check(f"{target}: an id that is not the target's own", len(task.task_id) > 60, task.task_id)
            result = await task.result()
            check(f"{target}: a task is waited for", "again" in str(result), result)
            result = await client.call_tool(f"{target}_ask", {})
            check(f"{target}: a task asks", result.content[0].text == "hello Ada", result)
            task = await call_tool_task(client, f"{target}_hang", {})
            check(f"{target}: a task works", (await task.status()).status == "working", task)
            await task.cancel()
            for _ in range(100):
                status = (await task.status()).status
                if status == "cancelled":
                    break
                await asyncio.sleep(0.05)
            check(f"{target}: a task is cancelled", status == "cancelled", status)


asyncio.run(main())
