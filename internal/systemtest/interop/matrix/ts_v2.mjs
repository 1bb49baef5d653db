// TypeScript SDK v2, pinned to one revision, or `auto`.
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { roots, run, sampled } from './cells.mjs';

await run(async (cell, updated) => {
  const stateless = cell.pin === '2026-07-28';
  const pin = cell.pin === 'auto' ? { versionNegotiation: { mode: 'auto' } }
    : stateless ? { versionNegotiation: { mode: { pin: cell.pin } } }
      : { versionNegotiation: { mode: 'legacy' }, supportedProtocolVersions: [cell.pin] };
  const client = new Client({ name: 'ts-v2', version: '1' }, { capabilities: { sampling: {}, elicitation: {}, roots: {} }, ...pin });
  client.setRequestHandler('sampling/createMessage', async () => sampled);
  client.setRequestHandler('elicitation/create', async () => ({ action: 'accept', content: cell.elicit }));
  client.setRequestHandler('roots/list', async () => ({ roots }));
  client.setNotificationHandler('notifications/resources/updated', (n) => updated(n.params.uri));
  const transport = new StreamableHTTPClientTransport(new URL(cell.url));
  await client.connect(transport);
  return {
    list: async () => (await client.listTools()).tools.map((t) => t.name),
    call: (name, args, options) => client.callTool({ name, arguments: args }, options),
    subscribe: (uri) => client.getNegotiatedProtocolVersion() === '2026-07-28' ? client.listen({ resourceSubscriptions: [uri] }) : client.subscribeResource({ uri }),
    close: async () => { if (transport.sessionId) await transport.terminateSession(); await client.close(); },
  };
});
