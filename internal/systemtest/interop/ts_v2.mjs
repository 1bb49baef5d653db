// TypeScript SDK v2, both eras.
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { check, text } from './checks.mjs';

async function session(mode, url, second, call) {
  const client = new Client({ name: 'ts-v2', version: '1' }, { versionNegotiation: { mode } });
  await client.connect(new StreamableHTTPClientTransport(new URL(url)));
  const era = typeof mode === 'string' ? mode : `pinned ${mode.pin}`;
  const tools = (await client.listTools()).tools.map((t) => t.name);
  check(`${era}: lists tools of both targets`, tools.includes('go_test_simple_text') && tools.some((t) => t.startsWith(second)), tools);
  check(`${era}: calls the first target`, text(await client.callTool({ name: 'go_test_simple_text', arguments: {} })).length > 0);
  check(`${era}: calls the second target`, text(await client.callTool(call)).includes('hello'));
  check(`${era}: reads a resource`, (await client.readResource({ uri: 'go+test://static-text' })).contents[0].text.length > 0);
  check(`${era}: gets a prompt`, (await client.getPrompt({ name: 'go_test_simple_prompt' })).messages.length > 0);
  await client.close();
}
await session('legacy', process.env.SESSION_URL, 'npm_', { name: 'npm_echo', arguments: { message: 'hello' } });
await session({ pin: '2026-07-28' }, process.env.STATELESS_URL, 'fast_', { name: 'fast_greet', arguments: { name: 'hello' } });
await session('auto', process.env.STATELESS_URL, 'fast_', { name: 'fast_greet', arguments: { name: 'hello' } });
process.exit(0);
