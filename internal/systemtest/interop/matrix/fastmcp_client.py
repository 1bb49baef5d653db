"""The cells of the matrix for FastMCP's client: fastmcp_client.py CELLS.json. See cells.mjs."""
import asyncio
import json
import sys

from fastmcp import Client
from fastmcp.client.messages import MessageHandler
from mcp.client.subscriptions import listen


class Hears(MessageHandler):
    """What a client is told, as the session era tells it; log messages are told so in both eras."""

    def __init__(self):
        self.told = []
        self.wake = asyncio.Event()

    def note(self, what):
        self.told.append(what)
        self.wake.set()

    async def until(self, *all):
        while not set(all) <= set(self.told):
            self.wake.clear()
            await self.wake.wait()

    async def on_resource_updated(self, message):
        self.note(str(message.params.uri))

    async def on_tool_list_changed(self, message):
        self.note("tools")

    async def on_prompt_list_changed(self, message):
        self.note("prompts")

    async def on_resource_list_changed(self, message):
        self.note("resources")

    async def on_log(self, message):
        self.note(f"logged {message.level}")


def report(cell, what, ok, saw):
    print(json.dumps({"cell": cell["id"], "what": what, "ok": ok, "saw": str(saw)[:500]}), flush=True)


def text(result):
    return "".join(getattr(c, "text", "") for c in result.content)


def stateless(client):
    return client.initialize_result is None


async def hear(client, hears, p):
    if stateless(client):
        async with listen(client.session, resource_subscriptions=[p["uri"]]) as events:
            if p.get("tool"):
                await client.call_tool(p["tool"], p.get("arguments") or {})
            async for event in events:
                return event
            raise RuntimeError("the subscription ended")
    await client.session.subscribe_resource(p["uri"])
    if p.get("tool"):
        await client.call_tool(p["tool"], p.get("arguments") or {})
    await hears.until(p["uri"])
    return p["uri"]


async def changes(client, hears, p):
    if stateless(client):
        async with listen(client.session, tools_list_changed=True, prompts_list_changed=True, resources_list_changed=True) as events:
            await client.call_tool(p["tool"], {})
            kinds = set()
            async for event in events:
                kinds.add(type(event).__name__)
                if len(kinds) == 3:
                    return kinds
            raise RuntimeError(f"the subscription ended, after {kinds}")
    await client.call_tool(p["tool"], {})
    await hears.until("tools", "prompts", "resources")
    return "all"


def wanted(p, saw):
    if saw != p["want"]:
        raise RuntimeError(f"{saw}, not {p['want']}")
    return saw


async def pages(client, p):
    lists = {
        "tools": [t.name for t in await client.list_tools()],
        "resources": [str(r.uri) for r in await client.list_resources()],
        "templates": [t.uri_template for t in await client.list_resource_templates()],
        "prompts": [x.name for x in await client.list_prompts()],
    }
    return wanted(p, ", ".join(f"{sum(p['tool'] in name for name in names)} {what}" for what, names in lists.items()))


async def progress(client, p, timeout):
    heard = []

    async def on_progress(*args):
        heard.append(args)

    await client.call_tool(p["tool"], p["arguments"], timeout=timeout, progress_handler=on_progress)
    return wanted(p, f"{len(heard)} times")


async def level(client, hears, p):
    await client.set_logging_level("warning")
    hears.told.clear()  # some servers log before they are told how much
    await client.call_tool(p["tool"], {})
    await hears.until(*(f"logged {x}" for x in p["want"].split()))
    return wanted(p, " ".join(x.removeprefix("logged ") for x in hears.told if x.startswith("logged ")))


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


async def probe(client, hears, p, timeout):
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
            return await hear(client, hears, p)
        case "unsubscribe":
            if not stateless(client):  # in the stateless era to leave `listen` was all
                await client.session.unsubscribe_resource(p["uri"])
            return await probe(client, hears, {**p, "kind": "call"}, timeout)
        case "pages":
            return await pages(client, p)
        case "read":
            return wanted(p, (await client.read_resource(p["uri"]))[0].text)
        case "prompt":
            return wanted(p, (await client.get_prompt(p["tool"])).messages[0].content.text)
        case "changes":
            return await changes(client, hears, p)
        case "progress":
            return await progress(client, p, timeout)
        case "level":
            return await level(client, hears, p)
        case "cancel":
            return await leave(client, p, timeout)
    raise RuntimeError(f"no probe {p['kind']}")


async def one(cell):
    hears = Hears()

    async def on_elicit(message, response_type, params, context):
        return cell["elicit"]

    async def on_sample(messages, params, context):
        return "Paris"

    client = Client(cell["url"], mode="legacy" if cell["pin"] == "sse" else cell["pin"], elicitation_handler=on_elicit, sampling_handler=on_sample,
                    roots=["file:///work"], message_handler=hears, log_handler=hears.on_log)
    entered = False
    try:
        async with client:
            entered = True
            for p in cell["probes"]:
                try:
                    limit = p.get("timeoutMs", cell["timeoutMs"]) / 1000
                    report(cell, p["what"], True, await asyncio.wait_for(probe(client, hears, p, limit), limit))
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
