"""The cells of the matrix for FastMCP's client: fastmcp_client.py CELLS.json. See cells.mjs."""
import asyncio
import json
import sys

from fastmcp import Client
from fastmcp.client.messages import MessageHandler
from mcp.client.subscriptions import listen


class Updates(MessageHandler):
    """Hears of updates, as the session era tells them."""

    def __init__(self):
        self.heard = asyncio.Event()

    async def on_resource_updated(self, message):
        self.heard.set()


def report(cell, what, ok, saw):
    print(json.dumps({"cell": cell["id"], "what": what, "ok": ok, "saw": str(saw)[:500]}), flush=True)


def text(result):
    return "".join(getattr(c, "text", "") for c in result.content)


async def hear(client, updates, p):
    if client.initialize_result is None:  # the stateless era
        async with listen(client.session, resource_subscriptions=[p["uri"]]) as events:
            if p.get("tool"):
                await client.call_tool(p["tool"], {})
            async for event in events:
                return event
            raise RuntimeError("the subscription ended")
    await client.session.subscribe_resource(p["uri"])
    if p.get("tool"):
        await client.call_tool(p["tool"], {})
    await updates.heard.wait()
    return p["uri"]


async def leave(client, p, timeout):
    begun = asyncio.Event()

    async def on_progress(*_):
        begun.set()

    call = asyncio.ensure_future(client.call_tool(p["tool"], p["arguments"], timeout=timeout, progress_handler=on_progress))
    first, _ = await asyncio.wait([call, asyncio.ensure_future(begun.wait())], return_when=asyncio.FIRST_COMPLETED)
    if call in first:
        return text(call.result())
    call.cancel()
    try:
        await call
    except asyncio.CancelledError:
        return "cancelled"
    raise RuntimeError("it ended by itself")


async def probe(client, updates, p, timeout):
    match p["kind"]:
        case "list":
            names = [t.name for t in await client.list_tools()]
            if p["tool"] not in names:
                raise RuntimeError(f"no {p['tool']} among {names}")
            return len(names)
        case "call" | "stream":  # this client asks for progress with every call
            got = text(await client.call_tool(p["tool"], p["arguments"], timeout=timeout))
            if p["want"] not in got:
                raise RuntimeError(f"result: {got}")
            return got
        case "update":
            return await hear(client, updates, p)
        case "cancel":
            return await leave(client, p, timeout)
    raise RuntimeError(f"no probe {p['kind']}")


async def one(cell):
    updates = Updates()

    async def on_elicit(message, response_type, params, context):
        return cell["elicit"]

    async def on_sample(messages, params, context):
        return "Paris"

    client = Client(cell["url"], mode="legacy" if cell["pin"] == "sse" else cell["pin"], elicitation_handler=on_elicit, sampling_handler=on_sample,
                    roots=["file:///work"], message_handler=updates)
    entered = False
    try:
        async with client:
            entered = True
            for p in cell["probes"]:
                try:
                    limit = p.get("timeoutMs", cell["timeoutMs"]) / 1000
                    report(cell, p["what"], True, await asyncio.wait_for(probe(client, updates, p, limit), limit))
                except Exception as err:
                    report(cell, p["what"], False, f"{type(err).__name__}: {err}")
    except Exception as err:
        if not entered:
            report(cell, "connects", False, f"{type(err).__name__}: {err}")


async def main():
    with open(sys.argv[1]) as f:
        work = json.load(f)
    turns = asyncio.Semaphore(work["parallel"])

    async def turn(cell):
        async with turns:
            await one(cell)

    await asyncio.gather(*(turn(cell) for cell in work["cells"]))


asyncio.run(main())
