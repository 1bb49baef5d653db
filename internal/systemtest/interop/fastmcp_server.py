"""A FastMCP server: fastmcp_server.py PORT."""
import sys

from fastmcp import FastMCP

server = FastMCP("fast")


@server.tool
def greet(name: str) -> str:
    """Greet somebody."""
    return f"greetings, {name}"


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
