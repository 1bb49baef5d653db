// TypeScript SDK v1. It has no way to choose a revision: it speaks the newest of the session era.
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { CallToolResultSchema, CreateMessageRequestSchema, ElicitRequestSchema, ListRootsRequestSchema, ResourceUpdatedNotificationSchema } from '@modelcontextprotocol/sdk/types.js';
import { roots, run, sampled } from './cells.mjs';

await run(async (cell, updated) => {
  const client = new Client({ name: 'ts-v1', version: '1' }, { capabilities: { sampling: {}, elicitation: {}, roots: {} } });
  client.setRequestHandler(CreateMessageRequestSchema, async () => sampled);
  client.setRequestHandler(ElicitRequestSchema, async () => ({ action: 'accept', content: cell.elicit }));
  client.setRequestHandler(ListRootsRequestSchema, async () => ({ roots }));
  client.setNotificationHandler(ResourceUpdatedNotificationSchema, (n) => updated(n.params.uri));
  const transport = new (cell.pin === 'sse' ? SSEClientTransport : StreamableHTTPClientTransport)(new URL(cell.url));
  await client.connect(transport);
  return {
    list: async () => (await client.listTools()).tools.map((t) => t.name),
    call: (name, args, options) => client.callTool({ name, arguments: args }, CallToolResultSchema, options),
    subscribe: (uri) => client.subscribeResource({ uri }),
    close: async () => { await transport.terminateSession?.(); await client.close(); },
  };
});
