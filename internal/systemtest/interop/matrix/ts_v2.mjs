// TypeScript SDK v2, pinned to one revision, or `auto`.
import { Client, LOG_LEVEL_META_KEY, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { roots, run, sampled } from './cells.mjs';

await run(async (cell, hears) => {
  const pin = cell.pin === 'auto' ? { versionNegotiation: { mode: 'auto' } }
    : cell.pin === '2026-07-28' ? { versionNegotiation: { mode: { pin: cell.pin } } }
      : { versionNegotiation: { mode: 'legacy' }, supportedProtocolVersions: [cell.pin] };
  const client = new Client({ name: 'ts-v2', version: '1' }, { capabilities: { sampling: {}, elicitation: {}, roots: {} }, ...pin });
  client.setRequestHandler('sampling/createMessage', async () => sampled);
  client.setRequestHandler('elicitation/create', async () => ({ action: 'accept', content: cell.elicit }));
  client.setRequestHandler('roots/list', async () => ({ roots }));
  client.setNotificationHandler('notifications/resources/updated', (n) => hears.updated(n.params.uri));
  for (const list of ['tools', 'prompts', 'resources']) client.setNotificationHandler(`notifications/${list}/list_changed`, () => hears.changed(list));
  client.setNotificationHandler('notifications/message', (n) => hears.logged(n.params.level));
  const transport = new StreamableHTTPClientTransport(new URL(cell.url));
  await client.connect(transport);
  const stateless = client.getNegotiatedProtocolVersion() === '2026-07-28';
  let listening;
  return {
    list: async () => (await client.listTools()).tools.map((t) => t.name),
    all: async () => ({
      tools: (await client.listTools()).tools.map((t) => t.name),
      resources: (await client.listResources()).resources.map((r) => r.uri),
      templates: (await client.listResourceTemplates()).resourceTemplates.map((t) => t.uriTemplate),
      prompts: (await client.listPrompts()).prompts.map((p) => p.name),
    }),
    call: (name, args, { level, ...options }) => client.callTool({ name, arguments: args, ...stateless && level && { _meta: { [LOG_LEVEL_META_KEY]: level } } }, options),
    setLevel: async (level) => { if (!stateless) await client.setLoggingLevel(level); },
    read: (uri) => client.readResource({ uri }),
    prompt: (name) => client.getPrompt({ name }),
    subscribe: async (uri) => { listening = stateless ? await client.listen({ resourceSubscriptions: [uri] }) : await client.subscribeResource({ uri }); },
    unsubscribe: (uri) => stateless ? listening.close() : client.unsubscribeResource({ uri }),
    listenForLists: async () => { if (stateless) await client.listen({ toolsListChanged: true, promptsListChanged: true, resourcesListChanged: true }); },
    close: async () => { if (transport.sessionId) await transport.terminateSession(); await client.close(); },
  };
});
