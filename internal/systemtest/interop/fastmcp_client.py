"""FastMCP's client, both eras."""
import asyncio
import os

from fastmcp import Client


def check(name, ok, seen=None):
    if not ok:
        raise SystemExit(f"{name}: saw {seen!r}")
    print(f"ok {name}", flush=True)


async def session(mode, url, second, call, arguments):
    async def on_elicit(message, response_type, params, context):
        return {"username": "ada", "email": "ada@example.com"}

    async def on_sample(messages, params, context):
        return "sampled here"

    async with Client(url, mode=mode, elicitation_handler=on_elicit, sampling_handler=on_sample) as client:
        tools = [t.name for t in await client.list_tools()]
        check(f"{mode}: lists tools of both targets", "go_test_simple_text" in tools and any(t.startswith(second) for t in tools), tools)
        check(f"{mode}: calls the first target", (await client.call_tool("go_test_simple_text", {})).content)
        result = await client.call_tool(call, arguments)
        check(f"{mode}: calls the second target", "hello" in result.content[0].text, result)
        resources = [str(r.uri) for r in await client.list_resources()]
        check(f"{mode}: lists resources", "go+test://static-text" in resources, resources)
        check(f"{mode}: reads a resource", (await client.read_resource("go+test://static-text"))[0].text)
        prompts = [p.name for p in await client.list_prompts()]
        check(f"{mode}: lists prompts", "go_test_simple_prompt" in prompts, prompts)
        check(f"{mode}: gets a prompt", (await client.get_prompt("go_test_simple_prompt")).messages)
        if mode == "legacy":
            sampled = await client.call_tool("go_test_sampling", {"prompt": "hi"})
            check(f"{mode}: is asked to sample", "sampled here" in sampled.content[0].text, sampled)
            elicited = await client.call_tool("go_test_elicitation", {"message": "who?"})
            check(f"{mode}: is asked to elicit", "ada" in elicited.content[0].text, elicited)


async def main():
    await session("legacy", os.environ["SESSION_URL"], "npm_", "npm_echo", {"message": "hello"})
    await session("2026-07-28", os.environ["STATELESS_URL"], "fast_", "fast_greet", {"name": "hello"})
    await session("auto", os.environ["STATELESS_URL"], "fast_", "fast_greet", {"name": "hello"})


asyncio.run(main())
