"""A FastMCP server whose lists have pages of ten, for sessions: fastmcp_pages.py PORT. Its tools are those of ts_server.mjs."""
import asyncio
import sys
from collections import defaultdict

from fastmcp import Context, FastMCP

server = FastMCP("pages", list_page_size=10)
left = defaultdict(asyncio.Event)


def page(n):
    """The nth of each list."""
    server.tool(lambda: f"tool {n}", name=f"page_{n}")
    server.resource(f"page://resource/{n}", name=f"page {n}")(lambda: f"text of page://resource/{n}")
    server.prompt(lambda: f"prompt page_{n}", name=f"page_{n}")
    if int(n) < 12:
        server.resource(f"page://template/{n}/{{id}}", name=f"page {n}")(lambda id: f"text of page://template/{n}/{id}")


for i in range(25):
    page(f"{i:02}")


@server.tool
async def ask(ctx: Context) -> str:
    """Ask the user twice."""
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    names = [(await ctx.session.elicit(message, schema, related_request_id=ctx.request_id)).content["name"] for message in ("Who are you?", "And who else?")]
    return f"Hello, {' and '.join(names)}!"


@server.tool
async def change(ctx: Context) -> str:
    """Say that all lists have changed."""
    await ctx.session.send_tool_list_changed()
    await ctx.session.send_prompt_list_changed()
    await ctx.session.send_resource_list_changed()
    return "changed"


@server.tool
async def count(ctx: Context) -> str:
    """Report progress."""
    for i in (1, 2, 3):
        await ctx.report_progress(i, 3)
    return "counted"


@server.tool
async def log(ctx: Context) -> str:
    """Log at three levels."""
    for level in ("debug", "warning", "error"):
        await ctx.log(level, level)
    return "logged"


@server.tool
async def hold(ctx: Context, key: str) -> str:
    """Last until its caller leaves."""
    await ctx.report_progress(1)
    try:
        await asyncio.Event().wait()
    finally:
        left[key].set()


@server.tool(name="left")
async def has_left(key: str) -> str:
    """Wait until the caller of a held call has left."""
    await left[key].wait()
    return "left"


if __name__ == "__main__":
    server.run(transport="http", host="localhost", port=int(sys.argv[1]), show_banner=False)
