"""A FastMCP server: fastmcp_server.py PORT."""
import sys

import mcp_types as mcp
from fastmcp import Context, FastMCP
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

server = FastMCP("fast")


@server.tool
def greet(name: str) -> str:
    """Greet somebody."""
    return f"greetings, {name}"


async def asked(ctx: Context, push):
    """What the client answers: by input_required in the stateless era, which leaves the tool (None), by a request before it."""
    if ctx.request_context.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        return await push()
    return (ctx.input_responses or {}).get("it")


@server.tool
async def ask(ctx: Context) -> str | mcp.InputRequiredResult:
    """Ask the user for a name."""
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    request = mcp.ElicitRequest(params=mcp.ElicitRequestFormParams(message="What is your name?", requested_schema=schema))
    answer = await asked(ctx, lambda: ctx.session.elicit("What is your name?", schema, related_request_id=ctx.request_id))
    if answer is None:
        return mcp.InputRequiredResult(input_requests={"it": request})
    return f"Hello, {answer.content['name']}!" if answer.action == "accept" else answer.action


@server.tool
async def sample(ctx: Context) -> str | mcp.InputRequiredResult:
    """Ask the client's model."""
    messages = [mcp.SamplingMessage(role="user", content=mcp.TextContent(type="text", text="What is the capital of France?"))]
    request = mcp.CreateMessageRequest(params=mcp.CreateMessageRequestParams(messages=messages, max_tokens=10))
    answer = await asked(ctx, lambda: ctx.session.create_message(messages, max_tokens=10, related_request_id=ctx.request_id))
    if answer is None:
        return mcp.InputRequiredResult(input_requests={"it": request})
    content = answer.content[0] if isinstance(answer.content, list) else answer.content
    return f"model: {content.text}"


@server.tool
async def roots(ctx: Context) -> str | mcp.InputRequiredResult:
    """Ask for the client's roots."""
    request = mcp.ListRootsRequest()
    answer = await asked(ctx, ctx.session.list_roots)
    if answer is None:
        return mcp.InputRequiredResult(input_requests={"it": request})
    return " ".join(str(root.uri) for root in answer.roots)


@server.resource("fast://motto")
def motto() -> str:
    """A motto."""
    return "many servers, one endpoint"


@server.prompt
def review(code: str) -> str:
    """Ask for a review."""
    return f"Review this:\n{code}"


if __name__ == "__main__":
    server.run(transport="http", host="localhost", port=int(sys.argv[1]), show_banner=False)
